//! The control ring: hashing, and pages that stay mapped.

use std::collections::BTreeMap;
use std::format;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

use xen_gnttab::GrantRef;
use xen_gnttab::mock::{MockMapping, map};
use xen_hypercall::PAGE_SIZE;
use xen_ring::Back;
use zerocopy::FromBytes;

use super::{Backend, ControlLimits};
use crate::abi::*;
use crate::hash;

/// What a backend has of a control ring.
pub(super) struct Control {
    ring: Back<Ctrl, MockMapping>,
    pub(super) port: u32,
    limits: ControlLimits,
    algorithm: u32,
    types: HashTypes,
    key: Vec<u8>,
    mapping: Vec<u32>,
    /// Pages that the guest let us keep mapped, by queue and reference.
    pub(super) pages: BTreeMap<(u32, u32), MockMapping>,
}

impl Control {
    pub(super) fn new(ring: Back<Ctrl, MockMapping>, port: u32, limits: ControlLimits) -> Self {
        let (types, key, mapping) = (HashTypes::empty(), Vec::new(), Vec::new());
        Self {
            ring,
            port,
            limits,
            algorithm: HASH_ALGORITHM_NONE,
            types,
            key,
            mapping,
            pages: BTreeMap::new(),
        }
    }

    /// What a frame is hashed by, its hash, and the queue that it leads to, of so many.
    pub(super) fn hash(&self, frame: &[u8], queues: usize) -> Option<(HashTypes, u32, usize)> {
        if self.algorithm == HASH_ALGORITHM_NONE {
            return None;
        }
        let (types, value) = hash::of_frame(&self.key, self.types, frame)?;
        let queue = match self.mapping.len() {
            0 => value as usize % queues,
            len => *self.mapping.get(value as usize % len)? as usize,
        };
        Some((types, value, queue))
    }
}

impl Backend {
    /// Serves what the guest asked, if an event said so.
    pub(super) fn serve_control(&mut self) -> bool {
        let Some(port) = self.control.as_ref().map(|control| control.port) else { return false };
        if !self.notified(port) {
            return false;
        }
        while let Some(mut control) = self.control.take() {
            let request = match control.ring.pop() {
                Ok(Some(request)) => request,
                Ok(None) if control.ring.arm().unwrap_or(false) => {
                    self.control = Some(control);
                    continue;
                }
                Ok(None) => {
                    self.control = Some(control);
                    break;
                }
                Err(error) => {
                    self.complain(error.to_string());
                    break;
                }
            };
            let (status, data) = match self.answer_control(&mut control, &request) {
                Ok(data) => (CTRL_SUCCESS, data),
                Err(status) => (status, 0),
            };
            let mut response = CtrlResponse { id: request.id, kind: request.kind, status, data };
            if let Some(super::Fault::Id(id)) = self.ctrl_faults.pop_front() {
                response.id = id;
            }
            let _ = control.ring.push(&response);
            let notify = control.ring.publish().unwrap_or(false);
            self.control = Some(control);
            if notify {
                self.notify(port);
            }
        }
        true
    }

    fn answer_control(&mut self, control: &mut Control, request: &CtrlRequest) -> Result<u32, u32> {
        let CtrlRequest { kind, data: [a, b, c], .. } = *request;
        let hashes = control.algorithm != HASH_ALGORITHM_NONE;
        match kind {
            CTRL_SET_HASH_ALGORITHM if a > HASH_ALGORITHM_TOEPLITZ => return Err(CTRL_INVALID_PARAMETER),
            CTRL_SET_HASH_ALGORITHM => control.algorithm = a,
            CTRL_GET_HASH_FLAGS | CTRL_SET_HASH_FLAGS if !hashes => return Err(CTRL_NOT_SUPPORTED),
            CTRL_GET_HASH_FLAGS => return Ok(control.limits.types.bits()),
            CTRL_SET_HASH_FLAGS if a & !control.limits.types.bits() != 0 => {
                return Err(CTRL_INVALID_PARAMETER);
            }
            CTRL_SET_HASH_FLAGS => control.types = HashTypes::from_bits_retain(a),
            CTRL_SET_HASH_KEY if b > control.limits.key => return Err(CTRL_BUFFER_OVERFLOW),
            CTRL_SET_HASH_KEY => control.key = self.read_page(a, b as usize)?,
            CTRL_GET_HASH_MAPPING_SIZE => return Ok(control.limits.mapping),
            CTRL_SET_HASH_MAPPING_SIZE if a > control.limits.mapping => return Err(CTRL_INVALID_PARAMETER),
            CTRL_SET_HASH_MAPPING_SIZE => control.mapping = vec![0; a as usize],
            CTRL_SET_HASH_MAPPING => {
                let words = self.read_page(a, (b as usize).saturating_mul(4))?;
                let words = words.chunks_exact(4).filter_map(|word| u32::read_from_bytes(word).ok());
                let words: Vec<u32> = words.collect();
                let room = control.mapping.get_mut(c as usize..).and_then(|rest| rest.get_mut(..words.len()));
                let room = room.ok_or(CTRL_BUFFER_OVERFLOW)?;
                if words.iter().any(|queue| *queue as usize >= self.queues.len()) {
                    return Err(CTRL_INVALID_PARAMETER);
                }
                room.copy_from_slice(&words);
            }
            CTRL_GET_GREF_MAPPING_SIZE if a as usize >= self.queues.len() => {
                return Err(CTRL_INVALID_PARAMETER);
            }
            CTRL_GET_GREF_MAPPING_SIZE => return Ok(control.limits.pages),
            CTRL_ADD_GREF_MAPPING => {
                let have = control.pages.keys().filter(|(queue, _)| *queue == a).count();
                if a as usize >= self.queues.len() || have + c as usize > control.limits.pages as usize {
                    return Err(CTRL_INVALID_PARAMETER);
                }
                for (gref, flags) in self.read_grefs(b, c)? {
                    let page = map(&self.own, self.guest.id(), GrantRef(gref), flags & GREF_READONLY == 0);
                    control.pages.insert((a, gref), page.map_err(|_| CTRL_INVALID_PARAMETER)?);
                }
            }
            CTRL_DEL_GREF_MAPPING => {
                let grefs = self.read_grefs(b, c)?;
                return Ok(
                    grefs.iter().filter(|(gref, _)| control.pages.remove(&(a, *gref)).is_some()).count()
                        as u32,
                );
            }
            _ => return Err(CTRL_NOT_SUPPORTED),
        }
        Ok(0)
    }

    fn read_grefs(&mut self, gref: u32, count: u32) -> Result<Vec<(u32, u16)>, u32> {
        let bytes = self.read_page(gref, (count as usize).saturating_mul(8))?;
        let entries = bytes.chunks_exact(8).filter_map(|entry| GrefEntry::read_from_bytes(entry).ok());
        Ok(entries.map(|entry| (entry.gref, entry.flags)).collect())
    }

    fn read_page(&mut self, gref: u32, len: usize) -> Result<Vec<u8>, u32> {
        if len > PAGE_SIZE {
            return Err(CTRL_INVALID_PARAMETER);
        }
        let mut bytes = vec![0; len];
        let page = map(&self.own, self.guest.id(), GrantRef(gref), false);
        match page.map(|mut page| page.mem().read_bytes(0, &mut bytes)) {
            Ok(Ok(())) => Ok(bytes),
            other => {
                self.complain(format!("a page of the control ring: {other:?}"));
                Err(CTRL_INVALID_PARAMETER)
            }
        }
    }
}
