//! The codec of xenstore's protocol, on any bytes in any pieces, and a client whose daemon sends them.

use std::collections::VecDeque;
use std::time::Duration;

use xen_evtchn::Port;
use xen_evtchn::mock::inject;
use xen_hypercall::hvm::HvmParam;
use xen_hypercall::mock::MockDomain;
use xen_ring::XenstoreLayout;
use xen_ring::mock::HostilePeer;
use xen_xenstore::wire::{Assembler, HEADER_SIZE, Header, PAYLOAD_MAX, Refusal, strings};
use xen_xenstore::{Error, Path, Violation, Xenstore};
use zerocopy::{FromBytes, IntoBytes};

use crate::input::{Bytes, Input, Number, Ops, input};
use crate::machine::{GUEST, Machine, SpecialPage, attempt};

input! {
    /// What is tried.
    pub enum Plan {
        /// Messages, and in what pieces they come.
        Stream { piece: u8, other: u8, parts: Ops<Part> },
        /// A client that asks all kinds of things, and gets this for an answer.
        Client { burst: u8, asks: [u8; 16], parts: Ops<Part> },
        /// A path of these bytes.
        Path { bytes: Bytes, name: Bytes },
    }

    /// What a stream consists of.
    pub enum Part {
        /// A message that says how long it is.
        Message { kind: u8, request: u8, transaction: u8, body: Bytes },
        /// One that answers what the client asked last, or what it has not asked yet.
        Answer { later: u8, body: Bytes },
        /// One that answers it with another kind of message: 16 is an error.
        Another { kind: u8, body: Bytes },
        /// A long one, of so many bytes of the same value.
        Long { kind: u8, request: u8, len: u16, value: u8 },
        /// One that says another length.
        Lie { kind: u8, request: u8, len: Number, body: Bytes },
        /// Bytes.
        Raw { bytes: Bytes },
    }
}

impl Part {
    /// The bytes on the wire, when the client's last question was of this kind and had this number.
    pub fn wire(&self, asked: u32, last: u32) -> Vec<u8> {
        let message = |kind: u32, request_id: u32, transaction_id: u8, len: u32, body: &[u8]| {
            let header = Header { kind, request_id, transaction_id: transaction_id.into(), len };
            [header.as_bytes(), body].concat()
        };
        match self {
            Self::Message { kind, request, transaction, body } => {
                message((*kind).into(), (*request).into(), *transaction, body.0.len() as u32, &body.0)
            }
            Self::Answer { later, body } => {
                message(asked, last.wrapping_add((*later).into()), 0, body.0.len() as u32, &body.0)
            }
            Self::Another { kind, body } => message((*kind).into(), last, 0, body.0.len() as u32, &body.0),
            Self::Long { kind, request, len, value } => {
                let len = usize::from(*len) % (PAYLOAD_MAX + 2);
                message((*kind).into(), (*request).into(), 0, len as u32, &vec![*value; len])
            }
            Self::Lie { kind, request, len, body } => {
                message((*kind).into(), (*request).into(), 0, len.get(), &body.0)
            }
            Self::Raw { bytes } => bytes.0.clone(),
        }
    }
}

type Messages = Vec<(Header, Vec<u8>)>;

/// What the messages in a stream are, and what is wrong with it; bytes of a message that is not whole do not count.
fn reference(mut bytes: &[u8]) -> (Messages, Option<Violation>) {
    let mut messages = Vec::new();
    while let Ok((header, rest)) = Header::read_from_prefix(bytes) {
        let len = header.len as usize;
        if len > PAYLOAD_MAX {
            return (messages, Some(Violation::Length(header.len)));
        }
        let Some(payload) = rest.get(..len) else { break };
        messages.push((header, payload.to_vec()));
        bytes = &rest[len..];
    }
    (messages, None)
}

/// What the codec makes of it, in pieces of at most these sizes.
fn assembled(mut bytes: &[u8], pieces: [usize; 2]) -> (Messages, Option<Violation>) {
    let mut assembler = Assembler::new();
    let mut messages = Vec::new();
    for piece in pieces.iter().cycle() {
        let room = assembler.room();
        assert!((1..=PAYLOAD_MAX.max(HEADER_SIZE)).contains(&room.len()), "room for {}", room.len());
        let count = room.len().min(bytes.len()).min(*piece);
        room[..count].copy_from_slice(&bytes[..count]);
        bytes = &bytes[count..];
        match assembler.advance(count) {
            Ok(true) => {
                let (header, payload) = assembler.message();
                messages.push((header, payload.to_vec()));
            }
            Ok(false) if count == 0 => break,
            Ok(false) => {}
            Err(violation) => return (messages, Some(violation)),
        }
    }
    (messages, None)
}

fn stream(pieces: [usize; 2], parts: &[Part]) {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.wire(2, 0)).collect();
    let (messages, violation) = assembled(&bytes, pieces);
    assert_eq!((&messages, violation), (&reference(&bytes).0, reference(&bytes).1));
    for (_, payload) in messages {
        let parts: Vec<&[u8]> = strings(&payload).collect();
        assert!(parts.iter().map(|part| part.len()).sum::<usize>() <= payload.len());
        assert!(parts.iter().all(|part| !part.contains(&0)));
        let _ = Refusal::from_payload(&payload).name();
    }
}

fn path(bytes: &[u8], name: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(path) = Path::new(&text) else { return };
    assert_eq!(&*path, &*text);
    if let Ok(joined) = path.join(String::from_utf8_lossy(name)) {
        assert!(joined.starts_with(&*path));
    }
}

/// The daemon of the input: takes questions as they come, and answers each with the next parts.
struct Daemon {
    guest: MockDomain,
    port: Port,
    peer: HostilePeer<XenstoreLayout, SpecialPage>,
    parts: VecDeque<Part>,
    /// Parts for each question.
    burst: u8,
    questions: Vec<u8>,
    answers: Vec<u8>,
}

impl Daemon {
    fn step(&mut self) -> bool {
        let mut bytes = [0; 1024];
        let count = self.peer.receive(&mut bytes);
        self.questions.extend_from_slice(&bytes[..count]);
        while let Ok((header, rest)) = Header::read_from_prefix(&self.questions) {
            if rest.len() < header.len as usize {
                break;
            }
            for part in (0..self.burst).map_while(|_| self.parts.pop_front()) {
                self.answers.extend(part.wire(header.kind, header.request_id));
            }
            self.questions.drain(..HEADER_SIZE + header.len as usize);
        }
        let sent = self.peer.send(&self.answers);
        self.answers.drain(..sent);
        let acted = count > 0 || sent > 0;
        if acted {
            inject(&self.guest, self.port);
        }
        acted
    }
}

fn client(burst: u8, asks: [u8; 16], parts: &[Part]) {
    let machine = Machine::new();
    let mut xs = Xenstore::new(&machine.events).expect("a connection");
    xs.set_patience(Duration::from_millis(10));
    let watch = xs.watch("data").expect("a watch");
    machine.store.stall(true);
    let mut daemon = Daemon {
        guest: machine.guest.clone(),
        port: xs.channel().port(),
        peer: HostilePeer::new(SpecialPage::of(&machine.guest, HvmParam::STORE_PFN))
            .expect("a page is enough"),
        parts: parts.iter().cloned().collect(),
        burst: 1 + burst % 4,
        questions: Vec::new(),
        answers: Vec::new(),
    };
    let actor = machine.xen.add_actor("daemon of the input", move |_| daemon.step());
    let mut broken = None;
    for ask in asks {
        let before = xs.now();
        let result = match ask % 7 {
            0 => xs.read("name").map(drop),
            1 => xs.directory("data", |name| assert!(name.len() <= PAYLOAD_MAX)),
            2 => xs.fired(&watch).map(drop),
            3 => xs.transaction(|transaction| transaction.read_optional::<u32>("data/a").map(drop)),
            4 => xs.permissions("data", |_, _| ()),
            5 => xs.domain_path(GUEST).map(drop),
            _ => xs.is_introduced(GUEST).map(drop),
        };
        // A transaction asks 64 times at most, and the others ask for as many parts as there are.
        assert!(xs.now() - before <= Duration::from_millis(64 * 3 * 10), "waits too long");
        if let Some(error) = broken {
            assert_eq!(result, Err(error), "broken means broken");
        }
        if let Err(error @ Error::Broken(_)) = result {
            broken = Some(error);
        }
    }
    machine.xen.remove_actor(actor);
    machine.store.stall(false);
    // A new connection is sound again.
    if xs.reconnect().is_ok() {
        assert_eq!(xs.read_str("name"), Ok("d1"));
    }
}

/// Tries an input.
pub fn run(data: &[u8]) {
    attempt(data, |plan: &Plan| match plan {
        Plan::Stream { piece, other, parts } => {
            stream([1 + usize::from(*piece), 1 + usize::from(*other)], &parts.0);
        }
        Plan::Client { burst, asks, parts } => client(*burst, *asks, &parts.0),
        Plan::Path { bytes, name } => path(&bytes.0, &name.0),
    });
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let body = |text: &[u8]| Bytes(text.to_vec());
    let answer = |text: &[u8]| Part::Answer { later: 0, body: body(text) };
    let parts = || {
        vec![
            answer(b"d1"),
            answer(b"a\0b\0c\0"),
            Part::Message { kind: 15, request: 0, transaction: 0, body: body(b"data/a\0data\0") },
            Part::Another { kind: 16, body: body(b"ENOENT\0") },
            answer(b"7\0"),
            answer(b"n1\0r0\0"),
            Part::Answer { later: 1, body: body(b"12") },
            answer(b"/local/domain/1\0"),
            answer(b"T\0"),
        ]
    };
    let with = |part: Part| Ops([parts(), vec![part], parts()].concat());
    let lie = || Part::Lie { kind: 2, request: 1, len: Number::Power { bit: 12, more: 1 }, body: body(b"x") };
    let long = || Part::Long { kind: 2, request: 3, len: 4096, value: b'x' };
    let asks = std::array::from_fn(|i| i as u8);
    let client = |burst, part| Plan::Client { burst, asks, parts: with(part) }.bytes();
    vec![
        ("stream", Plan::Stream { piece: 6, other: 250, parts: with(long()) }.bytes()),
        ("lie", Plan::Stream { piece: 0, other: 15, parts: with(lie()) }.bytes()),
        ("path", Plan::Path { bytes: body(b"/local/domain/1"), name: body(b"data") }.bytes()),
        ("client", client(0, answer(b""))),
        ("client-burst", client(1, long())),
        ("client-lie", client(0, lie())),
        ("client-raw", client(0, Part::Raw { bytes: Bytes(vec![0xff; 30]) })),
    ]
}
