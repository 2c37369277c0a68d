//! `xen.h`: calls that have no header of their own

pub const CONSOLEIO_WRITE: usize = 0;
pub const CONSOLEIO_READ: usize = 1;

pub const VMASST_CMD_ENABLE: usize = 0;
pub const VMASST_CMD_DISABLE: usize = 1;
pub const VMASST_TYPE_4GB_SEGMENTS: usize = 0;
pub const VMASST_TYPE_4GB_SEGMENTS_NOTIFY: usize = 1;
pub const VMASST_TYPE_WRITABLE_PAGETABLES: usize = 2;
pub const VMASST_TYPE_PAE_EXTENDED_CR3: usize = 3;
pub const VMASST_TYPE_ARCHITECTURAL_IOPL: usize = 4;
pub const VMASST_TYPE_RUNSTATE_UPDATE_FLAG: usize = 5;
pub const VMASST_TYPE_M2P_STRICT: usize = 32;

wire! {
    MulticallEntry = 64 { op: u64, result: u64, args: [u64; 6], }
}
