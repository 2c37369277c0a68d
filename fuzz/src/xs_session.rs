//! A session with xenstore: any calls, with a daemon that fails, hangs, is slow, lies, or writes anywhere in its page.
//!
//! What the client says was written is in the tree, and what it says was read was there, as long as the daemon does not
//! lie; every call ends in time; a connection that is broken stays so until it is made anew.

use std::time::Duration;

use xen_evtchn::mock::inject;
use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::{Chance, Dice, MockDomain};
use xen_ring::XenstoreLayout;
use xen_ring::mock::HostilePeer;
use xen_xenstore::mock::{Faults, Limits};
use xen_xenstore::wire::Header;
use xen_xenstore::{Error, ServerFeatures, Watch, Xenstore};

use crate::byte_ring::Hostile;
use crate::input::{Bytes, Input, Number, Ops, chance, clashes, input};
use crate::machine::{Machine, SpecialPage, attempt};

/// Nodes below the guest's own; the last is not one that it may write.
const PLACES: [&str; 8] = ["data/a", "data/a/b", "data/a/b/c", "data/ab", "data/e", "data", "device", "name"];
/// What a call that asks once may take; some ask more than once.
const PATIENCE: Duration = Duration::from_millis(20);

input! {
    /// What is tried.
    pub struct Plan {
        seed: u32,
        /// How often each goes wrong, in the order of [`Faults`].
        faults: [u8; 13],
        ops: Ops<Op>,
    }

    /// What happens next.
    pub enum Op {
        Write { place: u8, value: Bytes },
        WriteLong { place: u8, len: u16 },
        Read { place: u8 },
        ReadNumber { place: u8 },
        /// So many at once, beginning with this place, with so long a name of none after each.
        ReadAll { place: u8, count: u8, length: u8 },
        List { place: u8 },
        Make { place: u8 },
        Remove { place: u8 },
        Permissions { place: u8 },
        SetPermissions { place: u8, who: u8 },
        /// A path of any bytes.
        Anything { path: Bytes },
        Watch { place: u8 },
        WatchAll { places: [u8; 3] },
        /// Changes in a transaction that nothing is read in: the last of them may be one that is refused.
        Changes { count: u8, size: u8, last: u8 },
        Unwatch { which: u8 },
        Fired { which: u8 },
        WaitFired { which: u8 },
        /// Writes in a transaction, whether it is to succeed, and what another writes meanwhile.
        Transaction { places: [u8; 3], value: u8, commits: bool, meanwhile: Option<u8> },
        Reconnect,
        Poll,
        /// Domain 0 changes a node.
        Other { place: u8, value: Bytes },
        OtherRemoves { place: u8 },
        Stall { on: bool },
        Pace { bytes: u8 },
        Clash { times: u8 },
        Limits { nodes: u8, watches: u8 },
        Offer { features: u8 },
        GiveUp { reason: u8 },
        /// From now on messages are changed on their way: this word of the header, by this, and this byte of the body.
        Tamper { word: u8, by: Number, at: u8, with: u8 },
        TellTruth,
        /// The daemon writes anywhere in its page.
        Raw { act: Hostile },
        /// The guest goes on in a new domain, after it was brought to rest or not.
        Migrate { quiesce: bool },
    }
}

impl Plan {
    fn faults(&self) -> Faults {
        let f = self.faults.map(chance);
        let mut faults = Faults::new();
        [faults.again, faults.refused, faults.missing, faults.empty] = [f[0], f[1], f[2], f[3]];
        [faults.not_number, faults.not_text, faults.too_long, faults.late] = [f[4], f[5], f[6], f[7]];
        [faults.doubled, faults.doubled_event, faults.spurious_event] = [f[8], f[9], f[10]];
        [faults.unknown_event, faults.gives_up] = [f[11], f[12]];
        faults
    }

    /// Whether a value that is read may be another.
    fn spoils(&self) -> bool {
        self.faults[3..7].iter().any(|often| chance(*often) != Chance::NEVER)
    }
}

fn place(which: u8) -> &'static str {
    PLACES[usize::from(which) % PLACES.len()]
}

struct Run<'m> {
    machine: &'m Machine,
    watches: Vec<Watch>,
    /// The daemon changes messages, or its page was written to, since the connection was made.
    lied: bool,
    tampering: bool,
    spoils: bool,
    broken: Option<Error>,
}

impl<'m> Run<'m> {
    /// The guest's own directory.
    fn home(&self) -> String {
        format!("/local/domain/{}", self.machine.guest.id().0)
    }

    fn full(&self, which: u8) -> String {
        format!("{}/{}", self.home(), place(which))
    }

    fn watch(&self, which: u8) -> Option<&Watch> {
        self.watches.get(usize::from(which) % self.watches.len().max(1))
    }

    /// Whether the daemon has what the client wrote.
    fn check_written(&self, which: u8, value: &[u8], result: Result<(), Error>) {
        if result.is_ok() && !self.lied {
            assert_eq!(self.machine.store.read_bytes(&self.full(which)).as_deref(), Some(value));
        }
    }

    fn lie(&mut self) {
        self.lied = true;
    }

    fn step(&mut self, xs: &mut Xenstore<'m, MockDomain>, op: &Op) {
        let before = xs.now();
        let result = self.call(xs, op);
        // A transaction begins again 64 times at most, and asks up to six times each time; a new connection sets each
        // watch again; a list in parts has as many as the daemon makes of it, in one time.
        let asks = match op {
            Op::Transaction { .. } => 64 * 6,
            // Each answer has its time.
            Op::ReadAll { count, .. } => 4 + u32::from(*count % 80),
            Op::Changes { count, .. } => 64 * (4 + u32::from(*count % 48)),
            Op::Reconnect | Op::Migrate { .. } => 2 + 2 * 128,
            _ => 4,
        };
        let took = xs.now() - before;
        assert!(took <= PATIENCE * asks, "{op:?} took {took:?}");
        let Some(result) = result else { return };
        if matches!(op, Op::Migrate { .. }) {
            // Another page, of a daemon that knows nothing of the one before.
            self.lied = self.tampering;
            self.broken = match result {
                // Some of the watches have ended then.
                Ok(()) | Err(Error::Refused(..)) => None,
                Err(_) => Some(xs.poll().expect_err("no connection before another try")),
            };
            return;
        }
        if matches!(op, Op::Reconnect) {
            // Without an offer nothing has changed.
            if result != Err(Error::NoReconnect) {
                self.broken = None;
                self.lied = self.tampering;
            }
            return;
        }
        match (self.broken, result) {
            // What is wrong with the call itself is said first.
            (Some(_), Err(Error::BadPath | Error::TooLong | Error::TooManyWatches)) => {}
            // One that a new connection was refused has ended already.
            (Some(_), Ok(())) if matches!(op, Op::Unwatch { .. }) => {}
            (Some(error), result) => assert_eq!(result, Err(error), "broken means broken"),
            (None, Err(error @ Error::Broken(_))) => {
                assert!(self.lied, "an honest daemon, and {error}");
                self.broken = Some(error);
            }
            (None, _) => {}
        }
    }

    /// Does it; returns how a call of the client ended.
    fn call(&mut self, xs: &mut Xenstore<'m, MockDomain>, op: &Op) -> Option<Result<(), Error>> {
        let store = &self.machine.store;
        Some(match *op {
            Op::Write { place: which, ref value } => {
                let result = xs.write(place(which), &value.0);
                self.check_written(which, &value.0, result);
                result
            }
            Op::WriteLong { place: which, len } => {
                let value = vec![b'l'; usize::from(len) % 5000];
                let result = xs.write(place(which), &value);
                self.check_written(which, &value, result);
                result
            }
            Op::Read { place: which } => {
                let result = xs.read(place(which));
                if let (Ok(value), false) = (result, self.lied || self.spoils) {
                    assert_eq!(store.read_bytes(&self.full(which)).as_deref(), Some(value));
                }
                result.map(drop)
            }
            Op::ReadNumber { place: which } => {
                let result = xs.read_optional::<u32>(place(which));
                if let (Ok(Some(value)), false) = (result, self.lied || self.spoils) {
                    assert_eq!(
                        store.read(&self.full(which)).and_then(|text| text.trim().parse().ok()),
                        Some(value)
                    );
                }
                result.map(drop)
            }
            Op::ReadAll { place: first, count, length } => {
                let home = self.home();
                let none = format!("none/{}", "n".repeat(length.into()));
                let count = count % 80;
                let names: Vec<&str> = (0..count)
                    .flat_map(|number| [place(first.wrapping_add(number)), &none])
                    .take(count.into())
                    .collect();
                let mut seen = vec![false; names.len()];
                let result = xs.read_each("", &names, |index, value| {
                    assert!(!std::mem::replace(&mut seen[index], true), "one answer to a question");
                    if let (Ok(value), false) = (value, self.lied || self.spoils) {
                        let path = format!("{home}/{}", names[index]);
                        assert_eq!(store.read_bytes(&path).as_deref(), Some(value));
                    }
                });
                assert!(result.is_err() || seen.iter().all(|seen| *seen), "each is answered");
                result
            }
            Op::List { place: which } => {
                let mut names = Vec::new();
                let result = xs.directory(place(which), |name| names.push(name.to_owned()));
                if result.is_ok() && !self.lied {
                    assert_eq!(names, store.list(&self.full(which)));
                }
                result
            }
            Op::Make { place: which } => xs.mkdir(place(which)),
            Op::Remove { place: which } => {
                let result = xs.remove(place(which));
                if result.is_ok() && !self.lied {
                    assert_eq!(store.read_bytes(&self.full(which)), None);
                }
                result
            }
            Op::Permissions { place: which } => xs.permissions(place(which), |_, _| ()),
            Op::SetPermissions { place: which, who } => {
                let lists = ["n1", "n1\0r0", "b1", "r0", "n1\0r0\0w2\0b3\0n4\0n5", "", "x9", "n99999999999"];
                xs.set_permissions(place(which), lists[usize::from(who) % lists.len()])
            }
            Op::Anything { ref path } => xs.read(&String::from_utf8_lossy(&path.0)).map(drop),
            Op::Watch { place: which } => xs.watch(place(which)).map(|watch| self.watches.push(watch)),
            Op::WatchAll { places } => xs.watch_all(places.map(place)).map(|watches| {
                self.watches.extend(watches.into_iter().filter_map(Result::ok));
            }),
            Op::Changes { count, size, last } => {
                let value = vec![b'c'; size.into()];
                let result = xs.transaction(|transaction| {
                    for number in 0..count % 48 {
                        transaction.write(place(number % 5), &value)?;
                    }
                    // Whatever becomes of it, the transaction's end tells.
                    let _ = transaction.remove(place(last));
                    Ok(())
                });
                if result.is_ok() && !self.lied {
                    assert_eq!(store.read_bytes(&self.full(last)), None, "all of it");
                }
                result
            }
            Op::Unwatch { which } => {
                let index = usize::from(which) % self.watches.len().max(1);
                if index >= self.watches.len() {
                    return None;
                }
                let watch = self.watches.swap_remove(index);
                xs.unwatch(watch)
            }
            Op::Fired { which } => xs.fired(self.watch(which)?).map(drop),
            Op::WaitFired { which } => {
                let deadline = xs.now() + PATIENCE;
                xs.wait_fired(self.watch(which)?, deadline).map(drop)
            }
            Op::Transaction { places, value, commits, meanwhile } => {
                let mut other = meanwhile;
                let mut runs = 0;
                let result = xs.transaction(|transaction| {
                    runs += 1;
                    for which in places {
                        transaction.write(place(which), &[value])?;
                    }
                    transaction.read_optional::<String64>(place(places[0]))?;
                    if let Some(which) = other.take() {
                        store.write(&self.full(which), "other");
                    }
                    if commits { Ok(()) } else { Err(Error::BadValue) }
                });
                assert!(runs <= 64);
                // All of it or nothing.
                if result.is_ok() && !self.lied {
                    for which in places {
                        assert_eq!(store.read_bytes(&self.full(which)), Some(vec![value]));
                    }
                }
                result
            }
            Op::Reconnect => xs.reconnect(),
            Op::Migrate { quiesce } => {
                if quiesce {
                    let _ = xs.quiesce();
                }
                self.machine.migrate();
                xs.resume()
            }
            Op::Poll => xs.poll(),
            ref other => {
                self.daemon(xs, other);
                return None;
            }
        })
    }

    /// What the daemon does, and others do.
    fn daemon(&mut self, xs: &Xenstore<'m, MockDomain>, op: &Op) {
        let store = &self.machine.store;
        match *op {
            Op::Other { place: which, ref value } => store.write_bytes(&self.full(which), &value.0),
            Op::OtherRemoves { place: which } => store.remove(&self.full(which % 5)),
            Op::Stall { on } => store.stall(on),
            Op::Pace { bytes } => store.set_pace((bytes < 128).then(|| 1 + usize::from(bytes))),
            Op::Clash { times } => store.clash(clashes(times)),
            Op::Limits { nodes, watches } => {
                let mut limits = Limits::default();
                (limits.nodes, limits.watches) = (nodes.into(), watches.into());
                store.set_limits(limits);
            }
            Op::Offer { features } => store.offer(self.machine.guest.id(), ServerFeatures::from_bits_retain(features.into())),
            Op::GiveUp { reason } => {
                self.lie();
                store.give_up(self.machine.guest.id(), reason.into());
            }
            Op::Tamper { word, ref by, at, with } => {
                self.lied = true;
                self.tampering = true;
                let by = by.get();
                store.tamper(Some(move |header: &mut Header, body: &mut Vec<u8>| {
                    let words = [
                        &mut header.kind,
                        &mut header.request_id,
                        &mut header.transaction_id,
                        &mut header.len,
                    ];
                    if let Some(value) = words.into_iter().nth(usize::from(word % 5)) {
                        *value = value.wrapping_add(by);
                    }
                    if let Some(byte) = body.get_mut(usize::from(at)) {
                        *byte = with;
                    }
                }));
            }
            Op::TellTruth => {
                self.tampering = false;
                store.tamper(None::<fn(&mut Header, &mut Vec<u8>)>);
            }
            Op::Raw { ref act } => {
                self.lie();
                let page = SpecialPage::of(&self.machine.guest, HvmParam::STORE_PFN);
                let mut peer = HostilePeer::<XenstoreLayout, _>::new(page).expect("a page is enough");
                peer.apply(act.op());
                inject(&self.machine.guest, xs.channel().port());
            }
            _ => {}
        }
    }
}

/// Text of at most 64 bytes.
#[derive(Debug)]
struct String64;

impl std::str::FromStr for String64 {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() <= 64 { Ok(Self) } else { Err(()) }
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| attempt_plan(plan));
}

fn attempt_plan(plan: &Plan) {
    let machine = Machine::new();
    let mut xs = Xenstore::new(&machine.events).expect("a connection");
    xs.set_patience(PATIENCE);
    machine.store.set_faults(Dice::new(plan.seed.into()), plan.faults());
    let mut run = Run {
        machine: &machine,
        watches: Vec::new(),
        lied: false,
        tampering: false,
        spoils: plan.spoils(),
        broken: None,
    };
    for op in &plan.ops.0 {
        machine.xen.trace(|| format!("-- {op:?}"));
        run.step(&mut xs, op);
    }
    // A new connection to an honest daemon is sound.
    machine.store.set_faults(Dice::new(0), Faults::new());
    machine.store.tamper(None::<fn(&mut Header, &mut Vec<u8>)>);
    machine.store.stall(false);
    machine.store.set_pace(None);
    machine.store.set_limits(Limits::default());
    let guest = machine.guest.id();
    machine.store.offer(guest, ServerFeatures::RECONNECTION | ServerFeatures::ERROR);
    xs.set_patience(Duration::from_secs(5));
    // Where a resume has not found a daemon. What else is wrong a new connection ends.
    let _ = xs.resume();
    xs.reconnect().expect("an honest daemon");
    assert_eq!(xs.read_parsed("domid"), Ok(guest.0));
    for watch in run.watches {
        xs.unwatch(watch).expect("an honest daemon");
    }
    assert_eq!(machine.store.watches(guest), 0);
    assert_eq!(machine.store.transactions(guest), 0);
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let plan = Plan { seed: 1, faults: [0; 13], ops: Ops(Vec::new()) };
    let body = |text: &[u8]| Bytes(text.to_vec());
    let session = || {
        vec![
            Op::Watch { place: 5 },
            Op::Write { place: 1, value: body(b"12") },
            Op::ReadNumber { place: 1 },
            Op::ReadAll { place: 0, count: 20, length: 60 },
            Op::WatchAll { places: [0, 1, 2] },
            Op::Changes { count: 40, size: 20, last: 1 },
            Op::Changes { count: 1, size: 1, last: 7 },
            Op::WriteLong { place: 3, len: 1500 },
            Op::Read { place: 3 },
            Op::List { place: 5 },
            Op::Transaction { places: [0, 1, 4], value: 7, commits: true, meanwhile: Some(1) },
            Op::SetPermissions { place: 0, who: 1 },
            Op::Permissions { place: 0 },
            Op::WaitFired { which: 0 },
            Op::Other { place: 2, value: body(b"x") },
            Op::Fired { which: 0 },
            Op::Remove { place: 0 },
        ]
    };
    let with = |more: Vec<Op>| Plan { ops: Ops([session(), more, session()].concat()), ..plan.clone() };
    let tamper = |word, by| Op::Tamper { word, by, at: 255, with: 0 };
    vec![
        ("session", with(vec![Op::Unwatch { which: 0 }, Op::Reconnect]).bytes()),
        ("faults", Plan { faults: [140; 13], ..with(vec![Op::Reconnect]) }.bytes()),
        ("slow", with(vec![Op::Pace { bytes: 6 }]).bytes()),
        ("hangs", with(vec![Op::Stall { on: true }, Op::Read { place: 0 }, Op::Stall { on: false }]).bytes()),
        ("clash", with(vec![Op::Clash { times: 255 }]).bytes()),
        ("limits", with(vec![Op::Limits { nodes: 3, watches: 1 }]).bytes()),
        (
            "other-kind",
            with(vec![tamper(0, Number::Up { by: 1 }), Op::Read { place: 0 }, Op::TellTruth, Op::Reconnect])
                .bytes(),
        ),
        ("longer", with(vec![tamper(3, Number::Up { by: 9 }), Op::Read { place: 0 }]).bytes()),
        ("migrated", {
            let suspended = [
                Op::Stall { on: true },
                Op::Read { place: 0 },
                Op::Migrate { quiesce: true },
                Op::Stall { on: false },
                Op::Migrate { quiesce: false },
            ];
            with([vec![Op::Migrate { quiesce: true }], session(), suspended.into()].concat()).bytes()
        }),
        ("given-up", with(vec![Op::GiveUp { reason: 1 }, Op::Poll, Op::Reconnect]).bytes()),
        ("index", {
            let act = Hostile::Advance { cursor: 3, by: Number::Power { bit: 10, more: 1 } };
            with(vec![Op::Raw { act }, Op::Poll, Op::Reconnect]).bytes()
        }),
    ]
}
