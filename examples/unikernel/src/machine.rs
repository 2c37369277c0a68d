//! The application's machine: clock, console and requests of the toolstack, by xenstore and event channels.

use core::cell::RefCell;
use core::fmt;
use core::time::Duration;

use webserver::config::{self, Config};
use webserver::report::Report;
use webserver::{Machine, Network, Request};
use xen_evtchn::{EventChannels, EventSeq};
use xen_hypercall::{Wait, version};
use xen_rt::Guest;
use xen_xenstore::{Path, Xenstore, control};

use crate::devices::{self, Devices, Disk, Nic, Slot};
use crate::platform::{self, Kernel, console};

pub(crate) type Events = &'static EventChannels<&'static Kernel>;
/// Xenstore, which the machine and the devices use in turns.
pub(crate) type Store = &'static RefCell<Xenstore<'static, &'static Kernel>>;

pub(crate) struct XenMachine {
    kernel: &'static Kernel,
    events: Events,
    control: Option<(Store, control::ShutdownWatch)>,
    slot: Option<&'static Slot>,
    #[cfg(feature = "suspend")]
    suspend: crate::suspend::Suspend,
    /// The last event before the round began.
    seen: EventSeq,
}

impl fmt::Debug for XenMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("XenMachine")
    }
}

impl XenMachine {
    /// Opens what the domain has. What is missing or broken is reported and left out.
    pub(crate) fn new(guest: Guest, mut config: Config) -> (Self, Devices, Config) {
        let (kernel, events) = (guest.kernel(), guest.events());
        let mut machine = Self {
            kernel,
            events,
            seen: events.seq(),
            control: None,
            slot: None,
            #[cfg(feature = "suspend")]
            suspend: crate::suspend::Suspend::new(guest),
        };
        let store = match Xenstore::new(events) {
            Ok(store) => leak(RefCell::new(store)),
            Err(error) => {
                log::error!("{error}; no devices, no name");
                return (machine, Devices::default(), config);
            }
        };
        {
            let mut xs = store.borrow_mut();
            match control::ShutdownWatch::new(&mut xs, OBEYS) {
                Ok(watch) => machine.control = Some((store, watch)),
                Err(error) => log::error!("{error}; requests of the toolstack are not seen"),
            }
            if <Nic as webserver::Nic>::PRESENT && config.address.is_none() {
                config.address = address_from_store(&mut xs);
            }
        }
        let devices = devices::open(guest.domain(), store, events);
        machine.slot = devices.slot;
        #[cfg(feature = "suspend")]
        let devices = Devices { part: machine.suspend.take_part(devices.part), ..devices };
        (machine, devices, config)
    }
}

/// What the toolstack may ask for.
const OBEYS: &[control::Request] = &[
    control::Request::PowerOff,
    control::Request::Reboot,
    #[cfg(feature = "suspend")]
    control::Request::Suspend,
];

/// The address that the toolstack wrote down for the card, which xl does on the backend's side.
fn address_from_store(xs: &mut Xenstore<'static, &'static Kernel>) -> Option<(core::net::Ipv4Addr, u8)> {
    let backend = Path::new(xs.read_str("device/vif/0/backend").ok()?).ok()?;
    xs.read_str(&backend.join("ip").ok()?).ok().and_then(config::address)
}

impl Machine for XenMachine {
    type Nic = Nic;
    type Disk = Disk;
    const SUSPENDS: bool = cfg!(feature = "suspend");

    fn now(&self) -> Duration {
        self.kernel.now()
    }

    fn unix_time(&self) -> Duration {
        self.kernel.unix_time()
    }

    fn poll(&mut self) -> Option<Request> {
        let (store, watch) = self.control.as_ref()?;
        let xs = &mut store.borrow_mut();
        let asked = watch.poll(xs).and_then(|asked| match asked {
            // Accepted when it is done; by a kernel that cannot, never, which the toolstack sees.
            Some(control::Request::Suspend) => Ok(asked),
            Some(request) => Ok(watch.accept(xs, request)?.then_some(request)),
            None => Ok(None),
        });
        match asked {
            Ok(None) => None,
            Ok(Some(control::Request::PowerOff | control::Request::Halt)) => Some(Request::PowerOff),
            Ok(Some(control::Request::Reboot)) => Some(Request::Reboot),
            #[cfg(feature = "suspend")]
            Ok(Some(control::Request::Suspend)) => Some(Request::Suspend),
            Ok(Some(control::Request::Crash)) => panic!("the toolstack asked for a crash"),
            Ok(Some(request)) => {
                log::warn!("the toolstack asked for {request:?}, which this kernel cannot do");
                None
            }
            Err(error) => {
                log::error!("{error}; requests of the toolstack are not seen");
                self.control = None;
                None
            }
        }
    }

    fn disk(&mut self) -> Option<Disk> {
        self.slot?.come()
    }

    fn begin(&mut self) {
        self.seen = self.events.seq();
    }

    fn sleep(&mut self, deadline: Option<Duration>) {
        self.events.wait_since(self.seen, deadline);
    }

    fn console_read(&mut self, buf: &mut [u8]) -> usize {
        console::read(buf)
    }

    fn console_write(&mut self, text: &str) {
        console::write_text(text);
    }

    fn report(&self, to: &mut dyn Report) {
        to.section("Domain");
        if let Some((store, _)) = &self.control
            && let Ok(mut store) = store.try_borrow_mut()
        {
            to.fact("name", &store.read_str("name").unwrap_or_default());
        }
        if let Ok(uuid) = version::guest_handle(self.kernel) {
            to.fact("uuid", &uuid);
        }
        if let (Ok((major, minor)), Ok(extra)) =
            (version::version(self.kernel), version::extraversion(self.kernel))
        {
            to.fact("Xen version", &format_args!("{major}.{minor}{extra}"));
        }
        let memory = platform::memory();
        let (events, console) = (self.events.stats(), console::stats());
        to.figure("uptime_seconds", (self.kernel.now() - self.kernel.started()).as_secs());
        to.figure("memory_used_bytes", memory.used as u64);
        to.figure("memory_free_bytes", memory.free as u64);
        to.figure("xen_hypercalls_total", self.kernel.hypercalls());
        to.figure("xen_notifications_total", events.notifications);
        to.figure("xen_upcalls_total", events.upcalls);
        to.figure("console_written_bytes_total", console.written);
        to.figure("console_dropped_bytes_total", console.dropped);
        if let Some((store, _)) = &self.control
            && let Ok(store) = store.try_borrow()
        {
            to.figure("xenstore_requests_total", store.stats().requests);
        }
        #[cfg(feature = "suspend")]
        self.suspend.report(to);
    }

    fn suspend<N: Network<Nic>>(&mut self, net: Option<&mut N>, disk: Option<&Disk>) {
        #[cfg(feature = "suspend")]
        if let Some((store, watch)) = &self.control {
            self.suspend.run(&mut store.borrow_mut(), watch, net, disk);
        }
        #[cfg(not(feature = "suspend"))]
        let (_, _) = (net, disk);
    }
}

/// Makes a thing that lives as long as the domain.
pub(crate) fn leak<T>(value: T) -> &'static T {
    alloc::boxed::Box::leak(alloc::boxed::Box::new(value))
}
