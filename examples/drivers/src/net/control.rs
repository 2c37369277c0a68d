//! The control ring: what the backend answers, and where it puts packets then.

use check_report::{Failure, Report, ensure};
use xen_netfront::abi::{
    CTRL_INVALID_PARAMETER, CTRL_NOT_SUPPORTED, HASH_ALGORITHM_NONE, HASH_ALGORITHM_TOEPLITZ, HashTypes,
};
use xen_netfront::{Error, TxMeta, hash};

use super::wire::{KINDS, frame, payload};
use super::{First, Second, receive, send};
use crate::place::Place;

const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

fn refused<T: core::fmt::Debug>(result: Result<T, Error>, status: u32) -> Result<(), Failure> {
    ensure!(matches!(result, Err(Error::Refused(_, answer)) if answer == status), "{result:?}");
    Ok(())
}

/// How the backend hashes, and which queue a hash leads to.
pub(super) struct Hash {
    types: HashTypes,
    mapping: [u32; 128],
}

impl Hash {
    /// Has the backend hash all that it can.
    pub(super) fn set(place: &Place, first: &mut First) -> Result<Self, Failure> {
        let mut mapping = [0; 128];
        let queues = first.queues() as u32;
        (0..).zip(&mut mapping).for_each(|(index, queue)| *queue = index * 7 % queues);
        let Some(mut ring) = first.control(place.soon()) else { return Err(Failure("there is none".into())) };
        ring.set_hash_algorithm(HASH_ALGORITHM_TOEPLITZ)?;
        let types = ring.hash_types()?;
        ensure!(!types.is_empty(), "it hashes nothing");
        ring.set_hash_types(types)?;
        ring.set_hash_key(&KEY)?;
        ensure!(ring.hash_mapping_size()? >= 128, "a table of {}", ring.hash_mapping_size()?);
        ring.set_hash_mapping(&mapping)?;
        Ok(Self { types, mapping })
    }

    /// Whether packets come with their hashes, by the queues that these lead to.
    pub(super) fn check(&self, place: &Place, first: &mut First, second: &mut Second) -> Result<(), Failure> {
        let mut seen = [false; 3];
        for (_, kind) in KINDS {
            for port in 2000..2016 {
                let data = payload(9, 64);
                send(place, second, &frame(kind, second.mac(), first.mac(), port, &data), TxMeta::default())?;
                let (frame, meta) = receive(place, first, second.mac()).map_err(|Failure(why)| {
                    Failure(alloc::format!("{kind:?} from port {port}: {why}, {:?}", first.stats()))
                })?;
                let Some((types, value)) = hash::of_frame(&KEY, self.types, &frame) else {
                    return Err(Failure("it is not of those that are hashed".into()));
                };
                let told = meta.hash.ok_or("no hash came with it")?;
                ensure!(told.value == value && told.types == types, "{told:?} in place of {value:#x}");
                let queue = self.mapping.get(value as usize % self.mapping.len()).copied().unwrap_or(0);
                ensure!(meta.queue as u32 == queue, "it came by queue {}, not {queue}", meta.queue);
                if let Some(seen) = seen.get_mut(meta.queue) {
                    *seen = true;
                }
            }
        }
        ensure!(seen.iter().filter(|seen| **seen).count() > 1, "all came by one queue");
        Ok(())
    }
}

pub(super) fn run(place: &Place, first: &mut First, second: &mut Second, report: &mut Report) {
    report.check("net/control-refuses-nonsense", || {
        let Some(mut ring) = first.control(place.soon()) else { return Err(Failure("there is none".into())) };
        refused(ring.set_hash_algorithm(77), CTRL_INVALID_PARAMETER)?;
        refused(ring.set_hash_types(HashTypes::from_bits_retain(1 << 20)), CTRL_INVALID_PARAMETER)?;
        refused(ring.set_hash_key(&[1; 41]), CTRL_INVALID_PARAMETER)?;
        refused(ring.set_hash_mapping(&[0; 129]), CTRL_INVALID_PARAMETER)
    });
    let mut set = None;
    report.check("net/control-hash", || {
        set = Some(Hash::set(place, first)?);
        Ok(())
    });
    report.check("net/packets-go-by-their-hash", || {
        let set = set.ok_or("it is not set")?;
        set.check(place, first, second)
    });
    report.check("net/control-hash-no-more", || {
        let Some(mut ring) = first.control(place.soon()) else { return Err(Failure("there is none".into())) };
        Ok(ring.set_hash_algorithm(HASH_ALGORITHM_NONE)?)
    });
    let mapped = first.control(place.soon()).map(|mut ring| ring.map_pages());
    match mapped {
        Some(Err(Error::Refused(_, CTRL_NOT_SUPPORTED))) => {
            report.lacking("net/mapped-pages", "the backend knows no XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING");
        }
        Some(mapped) => report.check("net/mapped-pages", || {
            ensure!(mapped? > 0, "it maps none");
            Ok(())
        }),
        None => {}
    }
}
