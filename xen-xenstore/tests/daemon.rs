//! The mock daemon by itself, asked what no client asks: whatever a guest sends, it answers as the real one.
#![cfg(feature = "mock")]

mod common;

use common::{HOME, ID, Machine, data};
use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::MockDomain;
use xen_hypercall::{DomId, Gfn, PAGE_SIZE, event};
use xen_ring::{Backing, ByteRing, SharedMem, XenstoreLayout};
use xen_xenstore::wire::{Assembler, HEADER_SIZE, Header, Operation, PAYLOAD_MAX};
use zerocopy::IntoBytes;

struct Page(MockDomain);

impl Backing for Page {
    fn mem(&mut self) -> SharedMem<'_> {
        let gfn = Gfn(self.0.hvm_param(HvmParam::STORE_PFN));
        let page = self.0.page_at(gfn).expect("the store's page");
        // SAFETY: the page lives as long as the machine, whose domain is held here, and this guest has no client that
        // accesses it as well.
        unsafe { SharedMem::new(page.cast(), PAGE_SIZE) }
    }
}

/// A guest that sends any bytes it likes.
struct Raw<'m> {
    machine: &'m Machine,
    guest: MockDomain,
    ring: ByteRing<XenstoreLayout, Page>,
    incoming: Assembler,
}

impl<'m> Raw<'m> {
    fn new(machine: &'m Machine) -> Self {
        let guest = machine.guest.clone();
        let ring = ByteRing::new(Page(guest.clone())).unwrap();
        Self { machine, guest, ring, incoming: Assembler::new() }
    }

    fn send(&mut self, mut bytes: &[u8]) {
        let port = self.guest.hvm_param(HvmParam::STORE_EVTCHN) as u32;
        while !bytes.is_empty() {
            let count = self.ring.write(bytes).unwrap();
            bytes = &bytes[count..];
            event::send(&self.guest, port).unwrap();
            self.machine.settle();
            if count == 0 {
                return;
            }
        }
    }

    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        loop {
            let room = self.incoming.room();
            let count = self.ring.read(room).unwrap();
            if self.incoming.advance(count).unwrap() {
                let (header, payload) = self.incoming.message();
                return Some((header, payload.to_vec()));
            }
            if count == 0 {
                let port = self.guest.hvm_param(HvmParam::STORE_EVTCHN) as u32;
                event::send(&self.guest, port).unwrap();
                if self.machine.xen.run_until_idle(100) == 0 {
                    return None;
                }
            }
        }
    }

    fn ask_in(
        &mut self,
        transaction_id: u32,
        operation: Operation,
        payload: &[u8],
    ) -> Result<Vec<u8>, String> {
        let header = Header { kind: operation.0, request_id: 77, transaction_id, len: payload.len() as u32 };
        self.send(&[header.as_bytes(), payload].concat());
        let (answer, payload) = self.receive().expect("an answer");
        assert_eq!((answer.request_id, answer.transaction_id), (77, transaction_id));
        match Operation(answer.kind) {
            Operation::ERROR => Err(String::from_utf8(payload).unwrap().trim_end_matches('\0').to_owned()),
            kind => {
                assert_eq!(kind, operation);
                Ok(payload)
            }
        }
    }

    fn ask(&mut self, operation: Operation, payload: &[u8]) -> Result<Vec<u8>, String> {
        self.ask_in(0, operation, payload)
    }

    fn refused(&mut self, operation: Operation, payload: &[u8]) -> String {
        self.ask(operation, payload).expect_err("a refusal")
    }

    fn error_word(&mut self) -> u32 {
        self.ring.word(XenstoreLayout::ERROR).unwrap()
    }
}

#[test]
fn what_is_not_a_guests_is_refused() {
    let machine = Machine::new();
    let mut raw = Raw::new(&machine);
    for operation in [
        Operation::CONTROL,
        Operation::INTRODUCE,
        Operation::RELEASE,
        Operation::RESUME,
        Operation::SET_TARGET,
    ] {
        assert_eq!(raw.refused(operation, b"1\0"), "EACCES", "{operation:?}");
    }
    for number in [15, 16, 20, 23, 24, 25, 26, 27, 41, 1000, u32::MAX] {
        assert_eq!(raw.refused(Operation(number), b"1\0"), "ENOSYS", "{number}");
    }
    assert_eq!(raw.ask(Operation::READ, b"name\0"), Ok(b"d1".to_vec()));
}

#[test]
fn arguments_without_sense_are_refused() {
    let machine = Machine::new();
    let mut raw = Raw::new(&machine);
    for (operation, payload, error) in [
        (Operation::READ, &b"name"[..], "EINVAL"),
        (Operation::READ, b"", "EINVAL"),
        (Operation::READ, b"\0", "EINVAL"),
        (Operation::READ, b"a b\0", "EINVAL"),
        (Operation::READ, b"/a/\0", "EINVAL"),
        (Operation::READ, b"\xff\0", "EINVAL"),
        (Operation::READ, b"@introduceDomain\0", "EINVAL"),
        (Operation::WRITE, b"data/a", "EINVAL"),
        (Operation::RM, b"/\0", "EACCES"),
        (Operation::SET_PERMS, b"data\0", "EINVAL"),
        (Operation::GET_PERMS, b"@introduceDomain\0", "EACCES"),
        (Operation::GET_PERMS, b"@nothing\0", "ENOENT"),
        (Operation::WATCH, b"data\0", "EINVAL"),
        (Operation::WATCH, b"a b\0token\0", "EINVAL"),
        (Operation::UNWATCH, b"data\0token\0", "ENOENT"),
        (Operation::DIRECTORY_PART, b"data\0", "EINVAL"),
        (Operation::DIRECTORY_PART, b"data\0-1\0", "EINVAL"),
        (Operation::GET_DOMAIN_PATH, b"x\0", "EINVAL"),
        (Operation::IS_DOMAIN_INTRODUCED, b"\0", "EINVAL"),
        (Operation::TRANSACTION_END, b"T\0", "ENOENT"),
        (Operation::TRANSACTION_END, b"X\0", "EINVAL"),
    ] {
        assert_eq!(raw.refused(operation, payload), error, "{operation:?} {}", payload.escape_ascii());
    }
    assert_eq!(raw.ask_in(5, Operation::READ, b"name\0"), Err("ENOENT".into()));
    assert_eq!(raw.ask_in(5, Operation::TRANSACTION_START, b"\0"), Err("EBUSY".into()));
    machine.store.set_permissions("@introduceDomain", "n0\0r1");
    assert_eq!(raw.ask(Operation::GET_PERMS, b"@introduceDomain\0"), Ok(b"n0\0r1\0".to_vec()));
    // Nothing after the list but its end.
    let part = raw.ask(Operation::DIRECTORY_PART, b"data\x001000\0").unwrap();
    assert!(part.ends_with(b"\0\0"));
}

#[test]
fn a_watch_is_set_once_and_tells_its_path_as_it_was_given() {
    let machine = Machine::new();
    let mut raw = Raw::new(&machine);
    for (watched, changed) in
        [("data/a", "data/a/b"), (&*format!("{HOME}/data/a"), &*format!("{HOME}/data/a/b"))]
    {
        let payload = format!("{watched}\0token\0");
        assert_eq!(raw.ask(Operation::WATCH, payload.as_bytes()), Ok(b"OK\0".to_vec()));
        let first = raw.receive().expect("the first event").1;
        assert_eq!(first, payload.as_bytes());
        machine.store.write(&format!("{HOME}/data/a/b"), "1");
        assert_eq!(raw.receive().expect("an event").1, format!("{changed}\0token\0").as_bytes());
        // What was removed above it is told by the path that is watched.
        machine.store.remove(&format!("{HOME}/data/a"));
        assert_eq!(raw.receive().expect("an event").1, payload.as_bytes());
        machine.store.write(&format!("{HOME}/data/a"), "");
        assert_eq!(raw.receive().expect("an event").1, payload.as_bytes());
        machine.store.remove(&format!("{HOME}/data"));
        assert_eq!(raw.receive().expect("an event").1, payload.as_bytes());
        machine.store.write(&format!("{HOME}/data"), "");
        machine.store.set_permissions(&format!("{HOME}/data"), "n1");
        assert_eq!(raw.receive(), None);
        assert_eq!(raw.refused(Operation::WATCH, payload.as_bytes()), "EEXIST");
        assert_eq!(raw.ask(Operation::UNWATCH, payload.as_bytes()), Ok(b"OK\0".to_vec()));
        assert_eq!(machine.store.watches(ID), 0);
    }
    raw.ask(Operation::WATCH, b"data\0t\0").unwrap();
    raw.receive().unwrap();
    raw.ask(Operation::TRANSACTION_START, b"\0").unwrap();
    raw.ask(Operation::RESET_WATCHES, b"\0").unwrap();
    assert_eq!((machine.store.watches(ID), machine.store.transactions(ID)), (0, 0));
}

#[test]
fn only_so_many_transactions_and_watches() {
    let machine = Machine::new();
    let mut raw = Raw::new(&machine);
    let begun = (0..100).take_while(|_| raw.ask(Operation::TRANSACTION_START, b"\0").is_ok()).count();
    assert_eq!(begun, 10);
    assert_eq!(raw.refused(Operation::TRANSACTION_START, b"\0"), "ENOSPC");
    assert_eq!(raw.ask_in(3, Operation::TRANSACTION_END, b"F\0"), Ok(b"OK\0".to_vec()));
    raw.ask(Operation::TRANSACTION_START, b"\0").unwrap();
    let mut set = 0;
    while raw.ask(Operation::WATCH, format!("data\0{set}\0").as_bytes()).is_ok() {
        raw.receive().expect("its event");
        set += 1;
    }
    assert_eq!(set, 128);
}

#[test]
fn a_guest_that_breaks_the_protocol_is_given_up() {
    // A message longer than any may be.
    let machine = Machine::new();
    let mut raw = Raw::new(&machine);
    let header = Header { kind: 2, request_id: 1, transaction_id: 0, len: PAYLOAD_MAX as u32 + 1 };
    raw.send(header.as_bytes());
    assert_eq!((raw.error_word(), raw.receive()), (3, None));
    raw.send(b"whatever");
    assert_eq!(raw.receive(), None);
    // Indices that cannot be.
    for (offset, value) in [(2052, 5000), (2056, 5000), (2052, u32::MAX - 4)] {
        let machine = Machine::new();
        let mut raw = Raw::new(&machine);
        machine.store.poke(ID, offset, value);
        machine.store.write(&format!("{HOME}/data"), "");
        event::send(&machine.guest, machine.guest.hvm_param(HvmParam::STORE_EVTCHN) as u32).unwrap();
        if offset == 2056 {
            // It is seen when something is to be sent.
            raw.ring.write(Header { kind: 2, ..Header::default() }.as_bytes()).unwrap();
        }
        machine.settle();
        assert_eq!(raw.error_word(), 2, "{offset}");
    }
    // The other guests do not notice.
    let machine = Machine::new();
    let other = machine.xen.domain(DomId(2));
    machine.store.connect(&other);
    let events = xen_evtchn::EventChannels::new(&other.boot().unwrap()).unwrap();
    let mut xs = xen_xenstore::Xenstore::new(&events).unwrap();
    let mut raw = Raw::new(&machine);
    raw.send(&[0xff; HEADER_SIZE]);
    assert_eq!(raw.error_word(), 3);
    assert_eq!(xs.read_str("name"), Ok("d2"));
}

#[test]
fn the_trace_reads_like_a_protocol() {
    let machine = Machine::new();
    let mut xs = machine.client();
    xs.transaction(|transaction| transaction.write("data/a", b"hello\x01")).unwrap();
    let _ = xs.read("data/none");
    let _watch = xs.watch("data").unwrap();
    let trace = machine.xen.trace_text();
    for line in [
        "xenstored: d1 TRANSACTION_START() = \"1\"",
        "xenstored: d1 WRITE(data/a hello\\x01) in transaction 1 = \"OK\"",
        "xenstored: d1 TRANSACTION_END(T) in transaction 1 = \"OK\"",
        "xenstored: d1 READ(data/none) = ENOENT",
        "xenstored to d1: event data (0-1)",
    ] {
        assert!(trace.contains(line), "{line}\n{trace}");
    }
}

#[test]
fn a_machine_with_a_store_goes_when_the_test_lets_go_of_it() {
    let machine = Machine::new();
    let gone = machine.xen.downgrade();
    machine.client().write(&data("here"), b"1").unwrap();
    let store = machine.store.clone();
    drop(machine);
    assert_eq!((gone.is_alive(), store.read(&data("here")).as_deref()), (true, Some("1")));
    drop(store);
    assert!(!gone.is_alive());
}
