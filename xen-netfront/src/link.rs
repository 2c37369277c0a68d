//! Whether a cable is plugged in, so to speak.

use xen_hypercall::{Platform, Wait};
use xen_xenstore::xenbus::{Connected, Frontend};
use xen_xenstore::{Watch, Xenstore};

/// The nodes that tell: `carrier` by the backend, `disconnect` by the toolstack in our own directory.
pub(crate) struct Link {
    watches: [Option<Watch>; 2],
    up: bool,
}

impl Link {
    /// Of a device that is not at work.
    pub(crate) fn unknown() -> Self {
        Self { watches: [None; 2], up: true }
    }

    /// Begins to watch. Without a place for a watch the link counts as up, as it does without the nodes.
    pub(crate) fn new<P: Platform + Wait>(xs: &mut Xenstore<'_, P>, device: &Frontend<Connected>) -> Self {
        let paths = [device.backend_path().join("carrier"), device.frontend_path().join("disconnect")];
        let watches = match paths {
            [Ok(carrier), Ok(disconnect)] => match xs.watch_all([&carrier, &disconnect]) {
                Ok(watches) => watches.map(Result::ok),
                Err(_) => [None; 2],
            },
            // A path too long to be there.
            _ => [None; 2],
        };
        Self { watches, up: true }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up
    }

    /// Looks again if something changed.
    pub(crate) fn service<P: Platform + Wait>(
        &mut self,
        xs: &mut Xenstore<'_, P>,
        device: &Frontend<Connected>,
    ) -> Result<(), xen_xenstore::Error> {
        let mut changed = false;
        for watch in self.watches.iter().flatten() {
            changed |= xs.fired(watch)?;
        }
        if changed {
            let carrier = device.backend_path().join("carrier")?;
            let disconnect = device.frontend_path().join("disconnect")?;
            // What is no number says nothing.
            let read =
                xs.read_all::<u32, 2>("", [&carrier, &disconnect]).map(|values| values.map(Result::ok));
            let [carrier, disconnect] = read.unwrap_or_default();
            self.up = carrier != Some(0) && disconnect.unwrap_or(0) == 0;
        }
        Ok(())
    }

    pub(crate) fn end<P: Platform + Wait>(&mut self, xs: &mut Xenstore<'_, P>) {
        for watch in self.watches.iter_mut().filter_map(Option::take) {
            let _ = xs.unwatch(watch);
        }
    }
}
