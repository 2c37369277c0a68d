//! `xen_version`

use super::{Answer, read, write};
use crate::abi::*;
use crate::mock::MockDomain;
use crate::version::Features;
use crate::{DomId, Errno, PAGE_SIZE};

/// The version that the mock says it is.
const VERSION: usize = 4 << 16 | 17;
/// What it says where a guest is not to know.
const DENIED: &str = "<denied>";
const BUILD_ID: [u8; 20] = *b"mock build id of Xen";

fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = text.bytes();
    core::array::from_fn(|_| bytes.next().unwrap_or(0))
}

pub(super) fn xen_version(domain: &MockDomain, [command, pointer, ..]: [usize; 5]) -> Answer {
    let control = domain.id() == DomId(0);
    match command {
        XENVER_VERSION => Ok(VERSION),
        XENVER_EXTRAVERSION => write(pointer, text::<16>(".0-mock")),
        XENVER_COMPILE_INFO => write(
            pointer,
            XenCompileInfo {
                compiler: text("rustc"),
                compile_by: text("nobody"),
                compile_domain: text("example.org"),
                compile_date: text("Thu Jan  1 00:00:00 UTC 1970"),
            },
        ),
        XENVER_CAPABILITIES => write(pointer, text::<1024>("hvm-3.0-x86_64 ")),
        XENVER_CHANGESET => write(pointer, text::<64>("mock")),
        XENVER_PLATFORM_PARAMETERS => {
            write(pointer, XenPlatformParameters { virt_start: 0xFFFF_8000_0000_0000 })
        }
        XENVER_GET_FEATURES => {
            let mut info: XenFeatureInfo = read(pointer)?;
            if info.submap_idx != 0 {
                return Err(Errno::EINVAL);
            }
            let mut features = Features::WRITABLE_PAGE_TABLES
                | Features::AUTO_TRANSLATED_PHYSMAP
                | Features::HVM_CALLBACK_VECTOR
                | Features::HVM_SAFE_PVCLOCK
                | Features::MEMORY_OP_VNODE
                | Features::NOT_DIRECT_MAPPED;
            features.set(Features::DOM0, control);
            info.submap = features.bits();
            write(pointer, info)
        }
        XENVER_PAGESIZE => {
            if pointer == 0 {
                Ok(PAGE_SIZE)
            } else {
                Err(Errno::EINVAL)
            }
        }
        XENVER_GUEST_HANDLE => {
            let [high, low] = domain.id().0.to_be_bytes();
            write(pointer, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low])
        }
        XENVER_COMMANDLINE if control => write(pointer, text::<1024>("dom0=mock")),
        // Only so many bytes are written then.
        XENVER_COMMANDLINE => write(pointer, text::<9>(DENIED)),
        XENVER_BUILD_ID if !control => Err(Errno::EPERM),
        XENVER_BUILD_ID if pointer == 0 => Ok(BUILD_ID.len()),
        XENVER_BUILD_ID => match read::<u32>(pointer)? as usize {
            0 => Err(Errno::EINVAL),
            room if room < BUILD_ID.len() => Err(Errno::ENOBUFS),
            _ => write(pointer + 4, BUILD_ID).map(|_| BUILD_ID.len()),
        },
        _ => Err(Errno::ENOSYS),
    }
}
