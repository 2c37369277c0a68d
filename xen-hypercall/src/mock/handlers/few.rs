//! Calls with few commands: `console_io`, `vm_assist`, `multicall`, `physdev_op`

use super::{Answer, read_at, write_at};
use crate::abi::*;
use crate::mock::MockDomain;
use crate::{DomId, Errno, HypercallNr};

/// As a debug build of Xen does, it takes every domain's text.
pub(super) fn console_io(domain: &MockDomain, [command, count, pointer, ..]: [usize; 5]) -> Answer {
    match command {
        CONSOLEIO_WRITE => {
            let text: Result<std::vec::Vec<u8>, _> =
                (0..count).map(|index| read_at(pointer, index)).collect();
            domain.add_console_output(&text?);
            Ok(0)
        }
        _ if domain.id() != DomId(0) => Err(Errno::EPERM),
        CONSOLEIO_READ if i32::try_from(count).is_err() => Err(Errno::E2BIG),
        // Nobody types.
        CONSOLEIO_READ => Ok(0),
        _ => Err(Errno::ENOSYS),
    }
}

pub(super) fn vm_assist(domain: &MockDomain, [command, assist, ..]: [usize; 5]) -> Answer {
    // The one that is not for PV guests.
    if assist != VMASST_TYPE_RUNSTATE_UPDATE_FLAG {
        return Err(Errno::EINVAL);
    }
    match command {
        VMASST_CMD_ENABLE => domain.state().assists |= 1 << assist,
        VMASST_CMD_DISABLE => domain.state().assists &= !(1 << assist),
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

/// What a debug build of Xen leaves of an entry besides its result.
const POISON: u64 = 0xAAAA_AAAA_AAAA_AAAA;

pub(super) fn multicall(domain: &MockDomain, [pointer, count, ..]: [usize; 5]) -> Answer {
    for index in 0..count as u32 as usize {
        let entry: MulticallEntry = read_at(pointer, index)?;
        let [a, b, c, d, e, _] = entry.args.map(|arg| arg as usize);
        let result = domain.xen().call(domain, HypercallNr(entry.op as usize), [a, b, c, d, e]);
        write_at(pointer, index, MulticallEntry { op: POISON, result: result as u64, args: [POISON; 6] })?;
    }
    Ok(0)
}

/// Guests have no pirqs, as HVM and PVH guests by default.
pub(super) fn physdev_op(_: &MockDomain, _: [usize; 5]) -> Answer {
    Err(Errno::ENOSYS)
}
