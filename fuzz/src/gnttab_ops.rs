//! A guest that grants and ends in every way, and a peer that maps, copies, keeps and lets go at will, against the model beside
//! the mock ([`model`]).

use xen_gnttab::mock::{Faults, model};
use xen_gnttab::{GrantRef, Version};
use xen_hypercall::mock::Dice;

use crate::input::{Input, Number, Ops, chance, input};
use crate::machine::{Xen, attempt};

input! {
    /// What is tried.
    pub struct Plan {
        /// Whether the table is of version 2.
        version2: bool,
        seed: u32,
        /// How often each goes wrong, in the order of [`Faults`].
        faults: [u8; 5],
        ops: Ops<Op>,
    }

    /// What happens next.
    pub enum Op {
        Share { writable: bool },
        /// Four pages, when so many allocations succeed.
        ShareMany { allocs: u8 },
        ShareRun { count: u8, writable: bool },
        Lend,
        Part { offset: u16, len: u16 },
        Reserve,
        GrantByReference,
        DropReference,
        End { grant: u8 },
        Drop { grant: u8 },
        TakeBack { grant: u8 },
        Reclaim { all: bool },
        /// The peer maps a page of a grant.
        Map { grant: u8, page: u8, writable: bool },
        /// Somebody maps any reference.
        MapAny { gref: Number, writable: bool, stranger: bool },
        /// The peer maps as a guest does.
        MapByHypercall { grant: u8, page: u8 },
        Write { mapping: u8, value: u8 },
        Unmap { mapping: u8 },
        Copy { grant: u8, write: bool, value: u8 },
        /// Copies anywhere, within and beyond the pages.
        CopyAny { gref: Number, from: u16, to: u16, len: u16 },
        LetGo,
        /// A grant is taken away while its flags change.
        Restless { changes: [u8; 7] },
        /// The guest goes on in a new domain; some pages are granted again.
        Migrate { again: u32 },
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| attempt_plan(plan));
}

fn attempt_plan(plan: &Plan) {
    let version = if plan.version2 { Version::V2 } else { Version::V1 };
    let mut faults = Faults::new();
    [faults.again, faults.copy, faults.map, faults.unmap, faults.keep] = plan.faults.map(chance);
    let dice = Dice::new(plan.seed.into());
    model::run(&Xen::new(), version, dice, faults, plan.ops.0.iter().map(Op::meant));
}

impl Op {
    fn meant(&self) -> model::Op {
        use model::Op as Meant;
        match *self {
            Self::Share { writable } => Meant::Share(writable),
            Self::ShareMany { allocs } => Meant::ShareMany((allocs % 6).into()),
            Self::ShareRun { count, writable } => Meant::ShareRun(usize::from(1 + count % 4), writable),
            Self::Lend => Meant::Lend,
            Self::Part { offset, len } => {
                Meant::Part((offset % 2 != 0).then_some((offset.into(), len.into())))
            }
            Self::Reserve => Meant::Reserve,
            Self::GrantByReference => Meant::GrantByReference,
            Self::DropReference => Meant::DropReference,
            Self::End { grant } => Meant::End(grant.into()),
            Self::Drop { grant } => Meant::Drop(grant.into()),
            Self::TakeBack { grant } => Meant::TakeBack(grant.into()),
            Self::Reclaim { all } => Meant::Reclaim(all),
            Self::Map { grant, page, writable } => Meant::Map(grant.into(), page.into(), writable),
            Self::MapAny { ref gref, writable, stranger } => {
                Meant::MapAny(GrantRef(gref.get()), writable, stranger)
            }
            Self::MapByHypercall { grant, page } => Meant::MapByHypercall(grant.into(), page.into()),
            Self::Write { mapping, value } => Meant::Write(mapping.into(), value),
            Self::Unmap { mapping } => Meant::Unmap(mapping.into()),
            Self::Copy { grant, write, value } => Meant::Copy(grant.into(), write, value),
            Self::CopyAny { ref gref, from, to, len } => {
                Meant::CopyAny(GrantRef(gref.get()), from.into(), to.into(), len.into())
            }
            Self::LetGo => Meant::LetGo,
            Self::Restless { changes } => Meant::Restless(changes),
            Self::Migrate { again } => Meant::Migrate(again),
        }
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let ops = || {
        vec![
            Op::Share { writable: true },
            Op::ShareRun { count: 2, writable: false },
            Op::Lend,
            Op::Part { offset: 0, len: 0 },
            Op::Part { offset: 4095, len: 2 },
            Op::ShareMany { allocs: 5 },
            Op::Map { grant: 0, page: 0, writable: true },
            Op::Write { mapping: 0, value: 9 },
            Op::MapByHypercall { grant: 0, page: 0 },
            Op::Copy { grant: 0, write: false, value: 3 },
            Op::Copy { grant: 0, write: true, value: 3 },
            Op::CopyAny { gref: Number::Up { by: 8 }, from: 4000, to: 0, len: 97 },
            Op::End { grant: 0 },
            Op::Reserve,
            Op::GrantByReference,
            Op::TakeBack { grant: 1 },
            Op::MapAny { gref: Number::Up { by: 9 }, writable: false, stranger: true },
            Op::Unmap { mapping: 0 },
            Op::Reclaim { all: false },
            Op::Unmap { mapping: 0 },
            Op::Reclaim { all: true },
            Op::Drop { grant: 0 },
            Op::DropReference,
            Op::LetGo,
            Op::Restless { changes: [0, 4, 0, 0, 0, 0, 0] },
            Op::Share { writable: false },
            Op::Migrate { again: 0x5555_5555 },
        ]
    };
    let plan = |version2, often| {
        Plan { version2, seed: 1, faults: [often; 5], ops: Ops([ops(), ops()].concat()) }.bytes()
    };
    vec![
        ("version-1", plan(false, 0)),
        ("version-2", plan(true, 0)),
        ("faults", plan(true, 150)),
        ("faults-1", plan(false, 150)),
    ]
}
