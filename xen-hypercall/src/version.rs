//! Xen's version and build, and the identity and features that it gives to the domain (`version.h`).
//!
//! Unless a function says otherwise, all guests have these calls: PV, HVM and PVH on x86, and those on Arm, in every Xen
//! since 4.0 (on Arm 4.3).
#![allow(unsafe_code, reason = "names the size of each buffer")]

use core::fmt;

use crate::abi::*;
use crate::call::{Command, Plain, fill, numbers, run};
use crate::{Errno, Hypercall, HypercallNr};

/// Text of at most `N` bytes that Xen gave; ends at the first zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const N: usize>([u8; N]);

impl<const N: usize> Text<N> {
    /// The text, as far as it is UTF-8 (Xen's is ASCII).
    pub fn as_str(&self) -> &str {
        let text = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        match core::str::from_utf8(text) {
            Ok(text) => text,
            Err(error) => text
                .get(..error.valid_up_to())
                .map_or("", |valid| core::str::from_utf8(valid).unwrap_or_default()),
        }
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// The domain's UUID (`xen_domain_handle_t`), as the toolstack set it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

/// Xen's version: major and minor.
///
/// # Errors
/// None that Xen documents.
pub fn version(xen: &(impl Hypercall + ?Sized)) -> Result<(u16, u16), Errno> {
    let both = numbers(xen, Plain::Version, [0; 4])?;
    Ok(((both >> 16) as u16, both as u16))
}

/// What follows major and minor, such as ".4-pre".
///
/// # Errors
/// None that Xen documents.
pub fn extraversion(xen: &(impl Hypercall + ?Sized)) -> Result<Text<16>, Errno> {
    // SAFETY: XENVER_extraversion fills a `xen_extraversion_t`, 16 characters.
    unsafe { fill(xen, HypercallNr::XEN_VERSION, XENVER_EXTRAVERSION) }.map(Text)
}

/// Which kinds of guests this Xen runs.
///
/// # Errors
/// None that Xen documents; with some security modules the text says only that it is denied.
pub fn capabilities(xen: &(impl Hypercall + ?Sized)) -> Result<Text<1024>, Errno> {
    // SAFETY: XENVER_capabilities fills a `xen_capabilities_info_t`, 1024 characters.
    unsafe { fill(xen, HypercallNr::XEN_VERSION, XENVER_CAPABILITIES) }.map(Text)
}

/// The compiler of this Xen, and by whom, where and when it ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct CompileInfo {
    /// The compiler and its version.
    pub compiler: Text<64>,
    /// The user.
    pub by: Text<16>,
    /// The host's domain.
    pub domain: Text<32>,
    /// The date; that of the sources in reproducible builds.
    pub date: Text<32>,
}

/// The compiler of this Xen, and by whom, where and when it ran.
///
/// # Errors
/// None that Xen documents; with some security modules the texts say only that it is denied.
pub fn compile_info(xen: &(impl Hypercall + ?Sized)) -> Result<CompileInfo, Errno> {
    // SAFETY: XENVER_compile_info fills a `xen_compile_info`, 144 bytes.
    let bytes: [u8; size_of::<XenCompileInfo>()] =
        unsafe { fill(xen, HypercallNr::XEN_VERSION, XENVER_COMPILE_INFO) }?;
    let XenCompileInfo { compiler, compile_by, compile_domain, compile_date } = zerocopy::transmute!(bytes);
    Ok(CompileInfo {
        compiler: Text(compiler),
        by: Text(compile_by),
        domain: Text(compile_domain),
        date: Text(compile_date),
    })
}

/// The state of the sources that this Xen was compiled from, as its version control tells it.
///
/// # Errors
/// None that Xen documents; with some security modules the text says only that it is denied.
pub fn changeset(xen: &(impl Hypercall + ?Sized)) -> Result<Text<64>, Errno> {
    // SAFETY: XENVER_changeset fills a `xen_changeset_info_t`, 64 characters.
    unsafe { fill(xen, HypercallNr::XEN_VERSION, XENVER_CHANGESET) }.map(Text)
}

/// Where the part of a PV guest's address space begins that is Xen's; of no use to others.
///
/// # Errors
/// None that Xen documents.
pub fn virt_start(xen: &(impl Hypercall + ?Sized)) -> Result<u64, Errno> {
    // SAFETY: XENVER_platform_parameters fills a `xen_platform_parameters`, 8 bytes.
    let bytes: [u8; 8] = unsafe { fill(xen, HypercallNr::XEN_VERSION, XENVER_PLATFORM_PARAMETERS) }?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Bytes in a page of the host.
///
/// # Errors
/// None that Xen documents; zero where a security module denies it.
pub fn page_size(xen: &(impl Hypercall + ?Sized)) -> Result<usize, Errno> {
    numbers(xen, Plain::PageSize, [0; 4])
}

/// Xen's own command line. Guests other than the control domain read only that it is denied. Since Xen 3.2.
///
/// # Errors
/// None that Xen documents.
pub fn command_line(xen: &(impl Hypercall + ?Sized)) -> Result<Text<1024>, Errno> {
    // SAFETY: XENVER_commandline fills at most a `xen_commandline_t`, 1024 characters.
    unsafe { fill(xen, HypercallNr::XEN_VERSION, XENVER_COMMANDLINE) }.map(Text)
}

/// What identifies a build of Xen: the linker's build id, usually a SHA-1 of 20 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BuildId {
    bytes: [u8; BuildId::MAX],
    len: usize,
}

impl BuildId {
    /// The longest that [`build_id`] takes.
    pub const MAX: usize = 60;

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The build id of this Xen. Since Xen 4.7.
///
/// # Errors
/// `EPERM` for guests other than the control domain, `ENODATA` when it was linked without one, `ENOBUFS` for one
/// that is longer than [`BuildId::MAX`].
pub fn build_id(xen: &(impl Hypercall + ?Sized)) -> Result<BuildId, Errno> {
    // SAFETY: XENVER_build_id takes a `xen_varbuf`.
    unsafe { varbuf(xen, XENVER_BUILD_ID) }.map(|(bytes, len)| BuildId { bytes, len })
}

/// Runs a command that fills a buffer and says how many bytes of it, at most `N`.
///
/// # Safety
/// The command takes a `xen_varbuf`: it reads `len` and writes at most so many bytes behind it.
unsafe fn varbuf<const N: usize>(
    xen: &(impl Hypercall + ?Sized),
    command: usize,
) -> Result<([u8; N], usize), Errno> {
    #[repr(C)]
    struct Varbuf<const N: usize> {
        len: u32,
        buf: [u8; N],
    }
    let mut argument = Varbuf { len: u32::try_from(N).unwrap_or(u32::MAX), buf: [0; N] };
    let pointer = (&raw mut argument).expose_provenance();
    // SAFETY: the caller vouches that the call stays within `argument`, where `buf` has at least `len` bytes.
    let len = Errno::check(unsafe { xen.hypercall(HypercallNr::XEN_VERSION, [command, pointer, 0, 0, 0]) })?;
    Ok((argument.buf, len.min(N)))
}

/// A text that [`long_text`] asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum LongText {
    /// What follows major and minor version, see [`extraversion`].
    Extraversion,
    /// Which kinds of guests this Xen runs, see [`capabilities`].
    Capabilities,
    /// The state of Xen's sources, see [`changeset`].
    Changeset,
    /// Xen's own command line, see [`command_line`].
    CommandLine,
}

impl LongText {
    const fn command(self) -> usize {
        match self {
            Self::Extraversion => XENVER_EXTRAVERSION2,
            Self::Capabilities => XENVER_CAPABILITIES2,
            Self::Changeset => XENVER_CHANGESET2,
            Self::CommandLine => XENVER_COMMANDLINE2,
        }
    }
}

/// A text whole, where the older call for it cuts it to a length of its own. Xen has these calls since 4.20; from an older
/// one it is the text of the older call.
///
/// ```
/// # use xen_hypercall::{DomId, Errno, mock::MockXen, version::{self, LongText}};
/// # let guest = MockXen::new().domain(DomId(1));
/// let changeset = version::long_text::<256>(&guest, LongText::Changeset)?;
/// # assert_eq!(changeset.as_str(), "mock");
/// # Ok::<(), Errno>(())
/// ```
///
/// # Errors
/// `ENOBUFS` for a text of more than `N` bytes, `EPERM` for the command line in guests other than the control domain, and
/// for any text with some security modules (from a Xen before 4.20, a text that says that it is denied).
pub fn long_text<const N: usize>(xen: &(impl Hypercall + ?Sized), text: LongText) -> Result<Text<N>, Errno> {
    // SAFETY: the commands of `LongText` take a `xen_varbuf`.
    match unsafe { varbuf(xen, text.command()) } {
        Ok((bytes, _)) => Ok(Text(bytes)),
        Err(Errno::ENOSYS) => match text {
            LongText::Extraversion => extraversion(xen).and_then(resized),
            LongText::Capabilities => capabilities(xen).and_then(resized),
            LongText::Changeset => changeset(xen).and_then(resized),
            LongText::CommandLine => command_line(xen).and_then(resized),
        },
        Err(error) => Err(error),
    }
}

fn resized<const M: usize, const N: usize>(text: Text<M>) -> Result<Text<N>, Errno> {
    let used = text.0.iter().position(|byte| *byte == 0).unwrap_or(M);
    let mut bytes = [0; N];
    match (bytes.get_mut(..used), text.0.get(..used)) {
        (Some(to), Some(from)) => to.copy_from_slice(from),
        _ => return Err(Errno::ENOBUFS),
    }
    Ok(Text(bytes))
}

/// The UUID of the calling domain.
///
/// # Errors
/// None that Xen documents.
pub fn guest_handle(xen: &(impl Hypercall + ?Sized)) -> Result<Uuid, Errno> {
    // SAFETY: XENVER_guest_handle fills a `xen_domain_handle_t`, 16 bytes.
    unsafe { fill(xen, HypercallNr::XEN_VERSION, XENVER_GUEST_HANDLE) }.map(Uuid)
}

// SAFETY: XENVER_get_features reads and fills a `xen_feature_info`.
unsafe impl Command for XenFeatureInfo {
    const NR: HypercallNr = HypercallNr::XEN_VERSION;
    const CMD: usize = XENVER_GET_FEATURES;
}

bitflags::bitflags! {
    /// What Xen offers this guest (`features.h`, the first 32 bits). Unknown bits are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Features: u32 {
        /// Page tables of PV guests may be writable.
        const WRITABLE_PAGE_TABLES = 1 << XENFEAT_WRITABLE_PAGE_TABLES;
        /// Descriptor tables of PV guests may be writable.
        const WRITABLE_DESCRIPTOR_TABLES = 1 << XENFEAT_WRITABLE_DESCRIPTOR_TABLES;
        /// Xen translates this guest's frame numbers.
        const AUTO_TRANSLATED_PHYSMAP = 1 << XENFEAT_AUTO_TRANSLATED_PHYSMAP;
        /// The kernel may run in ring 0.
        const SUPERVISOR_MODE_KERNEL = 1 << XENFEAT_SUPERVISOR_MODE_KERNEL;
        /// Page directories of 32-bit PV guests may lie above 4 GiB.
        const PAE_PGDIR_ABOVE_4GB = 1 << XENFEAT_PAE_PGDIR_ABOVE_4GB;
        /// PV guests have `MMU_PT_UPDATE_PRESERVE_AD`.
        const MMU_PT_UPDATE_PRESERVE_AD = 1 << XENFEAT_MMU_PT_UPDATE_PRESERVE_AD;
        /// PV guests have `MMU_CLEAR_PAGE` and `MMU_COPY_PAGE`.
        const HIGHMEM_ASSIST = 1 << XENFEAT_HIGHMEM_ASSIST;
        /// Mapping a grant takes flags for the page table entry (PV).
        const GNTTAB_MAP_AVAIL_BITS = 1 << XENFEAT_GNTTAB_MAP_AVAIL_BITS;
        /// Events may interrupt at a vector, `callback_vector` of `hvm`.
        const HVM_CALLBACK_VECTOR = 1 << XENFEAT_HVM_CALLBACK_VECTOR;
        /// Timers use Xen's safe version of the time stamp counter.
        const HVM_SAFE_PVCLOCK = 1 << XENFEAT_HVM_SAFE_PVCLOCK;
        /// Interrupts of devices may come as events.
        const HVM_PIRQS = 1 << XENFEAT_HVM_PIRQS;
        /// This is the first domain.
        const DOM0 = 1 << XENFEAT_DOM0;
        /// Memory may be asked for by virtual NUMA node.
        const MEMORY_OP_VNODE = 1 << XENFEAT_MEMORY_OP_VNODE_SUPPORTED;
        /// Arm: Xen has calls of the SMC calling convention.
        const ARM_SMCCC = 1 << XENFEAT_ARM_SMCCC_SUPPORTED;
        /// Frames of this guest are not those of the machine.
        const NOT_DIRECT_MAPPED = 1 << XENFEAT_NOT_DIRECT_MAPPED;
        /// Frames of this guest are those of the machine.
        const DIRECT_MAPPED = 1 << XENFEAT_DIRECT_MAPPED;
        /// A PVH dom0 may be given its ACPI tables anywhere in memory.
        const LINUX_RSDP_UNRESTRICTED = 1 << XENFEAT_LINUX_RSDP_UNRESTRICTED;
        /// There is [`register_runstate_page`](crate::vcpu::register_runstate_page). Since Xen 4.18.
        const RUNSTATE_PHYS_AREA = 1 << XENFEAT_RUNSTATE_PHYS_AREA;
        /// There is [`register_time_page`](crate::vcpu::register_time_page). Since Xen 4.18.
        const VCPU_TIME_PHYS_AREA = 1 << XENFEAT_VCPU_TIME_PHYS_AREA;
        /// Device models see all writes to the control words of MSI-X vectors. Since Xen 4.19.
        const DM_MSIX_ALL_WRITES = 1 << XENFEAT_DM_MSIX_ALL_WRITES;
        const _ = !0;
    }
}

/// What Xen offers this guest.
///
/// # Errors
/// None that Xen documents.
pub fn features(xen: &(impl Hypercall + ?Sized)) -> Result<Features, Errno> {
    let mut info = XenFeatureInfo::default();
    run(xen, &mut info)?;
    Ok(Features::from_bits_retain(info.submap))
}
