//! What others do to a device's nodes, and the daemon to its questions, over and over in tests of drivers.

use core::time::Duration;
use std::format;
use std::string::ToString;
use std::vec::Vec;

use xen_hypercall::mock::{ActorId, MockXen};

use super::MockXenstored;
use crate::wire::{Header, Operation};

impl MockXenstored {
    /// Says who may do what with a directory and all that is in it, as [`set_permissions`](Self::set_permissions) does for a node.
    pub fn permit(&self, directory: &str, list: &str) {
        let within = format!("{directory}/");
        for path in self.paths().iter().filter(|path| *path == directory || path.starts_with(&within)) {
            self.set_permissions(path, list);
        }
    }

    /// Somebody writes a node in each step of the machine, and 10 ms go by in it: for ten minutes from now on, which is longer than
    /// any wait should take.
    pub fn flood(&self, xen: &MockXen, path: &str, value: &str) -> ActorId {
        let (store, path, value) = (self.clone(), path.to_string(), value.to_string());
        let end = xen.now() + Duration::from_secs(600);
        xen.add_actor("flood", move |xen| {
            let more = xen.now() < end;
            if more {
                store.write(&path, &value);
                xen.advance(Duration::from_millis(10));
            }
            more
        })
    }

    /// A daemon that answers each question of a kind with an error, whatever it did. Takes the place of what
    /// [`tamper`](Self::tamper) was told.
    pub fn refuse(&self, kind: Operation, error: &'static str) {
        self.tamper(Some(move |header: &mut Header, body: &mut Vec<u8>| {
            if header.kind == kind.0 {
                header.kind = Operation::ERROR.0;
                *body = format!("{error}\0").into_bytes();
                header.len = body.len() as u32;
            }
        }));
    }
}
