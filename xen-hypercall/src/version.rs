//! What Xen this is, and who we are to it (`version.h`).
#![allow(unsafe_code, reason = "names the size of each answer")]

use core::fmt;

use crate::abi::{
    XENVER_CAPABILITIES, XENVER_EXTRAVERSION, XENVER_GET_FEATURES, XENVER_GUEST_HANDLE, XenFeatureInfo,
};
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
pub fn version(xen: &impl Hypercall) -> Result<(u16, u16), Errno> {
    let both = numbers(xen, Plain::Version, [0; 4])?;
    Ok(((both >> 16) as u16, both as u16))
}

/// What follows major and minor, such as ".4-pre".
///
/// # Errors
/// None that Xen documents.
pub fn extraversion(xen: &impl Hypercall) -> Result<Text<16>, Errno> {
    // SAFETY: XENVER_extraversion fills a `xen_extraversion_t`, 16 characters.
    unsafe { fill(xen, HypercallNr::XEN_VERSION, XENVER_EXTRAVERSION) }.map(Text)
}

/// Which kinds of guests this Xen runs.
///
/// # Errors
/// None that Xen documents; with some security modules the text says only that it is denied.
pub fn capabilities(xen: &impl Hypercall) -> Result<Text<1024>, Errno> {
    // SAFETY: XENVER_capabilities fills a `xen_capabilities_info_t`, 1024 characters.
    unsafe { fill(xen, HypercallNr::XEN_VERSION, XENVER_CAPABILITIES) }.map(Text)
}

/// The UUID of the calling domain.
///
/// # Errors
/// None that Xen documents.
pub fn guest_handle(xen: &impl Hypercall) -> Result<Uuid, Errno> {
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
        const WRITABLE_PAGE_TABLES = 1 << 0;
        /// Descriptor tables of PV guests may be writable.
        const WRITABLE_DESCRIPTOR_TABLES = 1 << 1;
        /// Xen translates this guest's frame numbers.
        const AUTO_TRANSLATED_PHYSMAP = 1 << 2;
        /// The kernel may run in ring 0.
        const SUPERVISOR_MODE_KERNEL = 1 << 3;
        /// Events may interrupt at a vector, `callback_vector` of `hvm`.
        const HVM_CALLBACK_VECTOR = 1 << 8;
        /// Timers use Xen's safe version of the time stamp counter.
        const HVM_SAFE_PVCLOCK = 1 << 9;
        /// Interrupts of devices may come as events.
        const HVM_PIRQS = 1 << 10;
        /// This is the first domain.
        const DOM0 = 1 << 11;
        const _ = !0;
    }
}

/// What Xen offers this guest.
///
/// # Errors
/// None that Xen documents.
pub fn features(xen: &impl Hypercall) -> Result<Features, Errno> {
    let mut info = XenFeatureInfo::default();
    run(xen, &mut info)?;
    Ok(Features::from_bits_retain(info.submap))
}
