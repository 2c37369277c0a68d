//! The devices of a kind that the toolstack gives the domain, as they come and go.

use core::fmt;

use xen_hypercall::DomId;

use super::XenbusState;
use crate::{Error, Path, Watch};

/// What a [`Bus`] tells.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "there is no heap, and one of them at a time")]
pub enum BusEvent {
    /// There is a device that was not there before. Its backend may not be ready.
    Added(BusDevice),
    /// A device is not there any more, or was made anew in its place: then it is [added](Self::Added) next.
    Removed(u32),
    /// A device's backend waits for a frontend, or has let go of one and would take another. Told again when the backend has
    /// written its state again.
    Ready(BusDevice),
    /// There are so many devices for which the bus has no place, and of which nothing is told. Told again when their number changes.
    Overflow(usize),
}

/// A device on a [`Bus`].
#[derive(Clone, Copy)]
pub struct BusDevice {
    pub(crate) index: u32,
    pub(crate) backend: Path,
    pub(crate) backend_id: DomId,
    pub(crate) virtual_device: Option<u32>,
    pub(crate) device_type: [u8; 16],
    pub(crate) type_len: usize,
}

impl BusDevice {
    /// The device's number, the name of its directory.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The backend's directory for the device.
    pub fn backend_path(&self) -> &Path {
        &self.backend
    }

    /// The domain that the backend is in.
    pub fn backend_id(&self) -> DomId {
        self.backend_id
    }

    /// The node `virtual-device`, which disks have.
    pub fn virtual_device(&self) -> Option<u32> {
        self.virtual_device
    }

    /// The node `device-type`: `disk` or `cdrom` for a disk. None: there is none, or no sense in it.
    pub fn device_type(&self) -> Option<&str> {
        let text = self.device_type.get(..self.type_len).filter(|text| !text.is_empty());
        text.and_then(|text| core::str::from_utf8(text).ok())
    }
}

impl fmt::Debug for BusDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusDevice")
            .field("index", &self.index)
            .field("backend", &self.backend)
            .field("device_type", &self.device_type())
            .finish_non_exhaustive()
    }
}

/// The devices of one kind (`vif`, `vbd`, `console`): those that are there, that come, and that go.
///
/// It has room for `DEVICES` of them. Its steps are in [`bus`](crate::way::tasks::bus) of either [way](crate::way) to wait:
///
/// ```
/// # use xen_evtchn::EventChannels;
/// # use xen_hypercall::{DomId, mock::MockXen};
/// # use xen_xenstore::mock::{MockDevice, MockXenstored};
/// use xen_xenstore::way::blocking::bus;
/// use xen_xenstore::xenbus::{Bus, BusEvent, XenbusState};
/// use xen_xenstore::{Blocking, Xenstore};
/// # let xen = MockXen::new();
/// # xen_evtchn::mock::install(&xen);
/// # let store = MockXenstored::new(&xen);
/// # let guest = xen.domain(DomId(1));
/// # store.connect(&guest);
/// # let token = guest.boot()?;
/// # let events = EventChannels::new(&token)?;
/// # let disk = MockDevice::new(&store, "vbd", 51712, DomId(1), DomId(0));
/// # disk.plug();
/// # store.write(&disk.front_path("device-type"), "disk");
/// # disk.set_state(XenbusState::INIT_WAIT);
///
/// let mut xs = Xenstore::new(&events)?;
/// let soon = xs.now() + core::time::Duration::from_secs(1);
/// let mut ask = Blocking::until(&mut xs, soon);
/// let mut disks: Bus = bus::open(&mut ask, "vbd")?;
/// let Some(BusEvent::Added(disk)) = bus::next(&mut disks, &mut ask)? else { panic!("a disk") };
/// assert_eq!((disk.index(), disk.device_type()), (51712, Some("disk")));
/// assert!(matches!(bus::next(&mut disks, &mut ask)?, Some(BusEvent::Ready(_))));
/// // Nothing else happens in time.
/// assert!(bus::next(&mut disks, &mut ask)?.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Bus<const DEVICES: usize = 16> {
    /// The directory, and the watch on it.
    pub(crate) root: Path,
    pub(crate) watch: Watch,
    pub(crate) places: [Option<Place>; DEVICES],
    /// The directory is to be looked at.
    pub(crate) is_stale: bool,
    /// Devices without a place, and whether that is told.
    pub(crate) overflow: usize,
    pub(crate) told: usize,
}

/// A place for a device.
pub(crate) struct Place {
    pub(crate) index: u32,
    /// None: the toolstack may still be writing.
    pub(crate) device: Option<BusDevice>,
    /// On the backend's state.
    pub(crate) watch: Option<Watch>,
    pub(crate) stage: Stage,
    /// The backend's state is to be looked at.
    pub(crate) looks: bool,
    /// Its directory is there, as far as the last look goes.
    pub(crate) is_there: bool,
    /// Its nodes are to be looked at.
    pub(crate) is_stale: bool,
}

/// How far what is told of a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Unknown,
    Found,
    Told,
}

impl<const DEVICES: usize> Bus<DEVICES> {
    pub(crate) fn new(root: Path, watch: Watch) -> Self {
        Self { root, watch, places: [const { None }; DEVICES], is_stale: true, overflow: 0, told: 0 }
    }

    /// The devices that are there, as far as they were told of.
    pub fn devices(&self) -> impl Iterator<Item = &BusDevice> {
        let told = self.places.iter().flatten().filter(|place| place.stage == Stage::Told);
        told.filter_map(|place| place.device.as_ref())
    }

    /// Whether these names are those of its devices, by the directory's answer.
    pub(crate) fn list(&mut self, list: &[u8]) {
        for place in self.places.iter_mut().flatten() {
            place.is_there = false;
        }
        self.overflow = 0;
        for index in crate::names(list).filter_map(|name| name.parse().ok()) {
            if let Some(known) = self.places.iter_mut().flatten().find(|place| place.index == index) {
                (known.is_there, known.is_stale) = (true, true);
                continue;
            }
            match self.places.iter_mut().find(|place| place.is_none()) {
                Some(place) => *place = Some(Place::new(index)),
                None => self.overflow += 1,
            }
        }
    }

    /// Notes which watches have fired.
    pub(crate) fn note(&mut self, mut fired: impl FnMut(Watch) -> Result<bool, Error>) -> Result<(), Error> {
        self.is_stale |= fired(self.watch)?;
        for place in self.places.iter_mut().flatten() {
            if let Some(watch) = place.watch {
                match fired(watch) {
                    Ok(has) => place.looks |= has,
                    // The daemon did not set it again: the backend's directory is another's, or gone.
                    Err(Error::Stale) => (place.watch, self.is_stale) = (None, true),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// All its watches.
    pub(crate) fn watches(&self) -> impl Iterator<Item = Watch> {
        let places = self.places.iter().flatten();
        core::iter::once(self.watch).chain(places.filter_map(|place| place.watch))
    }
}

impl Place {
    fn new(index: u32) -> Self {
        let (stage, device, watch) = (Stage::Unknown, None, None);
        Self { index, device, watch, stage, looks: true, is_there: true, is_stale: true }
    }
}

/// Whether a backend in this state would take a frontend.
pub(crate) fn is_ready(state: XenbusState, is_online: bool) -> bool {
    match state {
        XenbusState::INIT_WAIT | XenbusState::INITIALISED => true,
        // It has let go of what there was, and the toolstack does not want it to end.
        XenbusState::CLOSED => is_online,
        _ => false,
    }
}

impl<const DEVICES: usize> fmt::Debug for Bus<DEVICES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("root", &self.root).finish_non_exhaustive()
    }
}
