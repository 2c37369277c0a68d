//! The codec, on any bytes in any pieces.

use proptest::prelude::*;
use xen_xenstore::Violation;
use xen_xenstore::wire::{Assembler, HEADER_SIZE, Header, Operation, PAYLOAD_MAX, Refusal, strings};
use zerocopy::{FromBytes, IntoBytes};

type Message = (Header, Vec<u8>);

/// What the messages in a stream are, and what is wrong with it; bytes of a message that is not whole do not count.
fn reference(mut bytes: &[u8]) -> (Vec<Message>, Option<Violation>) {
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
fn assembled(mut bytes: &[u8], pieces: &[usize]) -> (Vec<Message>, Option<Violation>) {
    let mut assembler = Assembler::new();
    let mut messages = Vec::new();
    for piece in pieces.iter().cycle() {
        let room = assembler.room();
        assert!((1..=PAYLOAD_MAX).contains(&room.len()), "room for {}", room.len());
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

fn message() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..50),
        1 => prop::collection::vec(any::<u8>(), PAYLOAD_MAX - 1..=PAYLOAD_MAX),
    ];
    let lie = prop_oneof![
        20 => Just(None),
        1 => any::<u32>().prop_map(Some),
        1 => (PAYLOAD_MAX as u32 - 1..PAYLOAD_MAX as u32 + 2).prop_map(Some),
    ];
    (any::<[u32; 3]>(), payload, lie).prop_map(|([kind, request_id, transaction_id], payload, lie)| {
        let len = lie.unwrap_or(payload.len() as u32);
        [Header { kind, request_id, transaction_id, len }.as_bytes(), &payload].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn messages_come_whole_whatever_the_pieces(
        messages in prop::collection::vec(message(), 0..8),
        pieces in prop::collection::vec(1_usize..40, 1..5),
        large in prop::collection::vec(1_usize..5000, 1..5),
    ) {
        let stream = messages.concat();
        let expected = reference(&stream);
        prop_assert_eq!(&assembled(&stream, &pieces), &expected);
        prop_assert_eq!(&assembled(&stream, &large), &expected);
    }

    #[test]
    fn any_bytes_at_all_are_survived(
        stream in prop::collection::vec(any::<u8>(), 0..200),
        pieces in prop::collection::vec(1_usize..40, 1..5),
    ) {
        prop_assert_eq!(assembled(&stream, &pieces), reference(&stream));
    }

    #[test]
    fn a_caller_that_counts_wrong_harms_nobody(counts in prop::collection::vec(any::<usize>(), 0..50)) {
        let mut assembler = Assembler::new();
        for count in counts {
            assembler.room().fill(0x01);
            match assembler.advance(count) {
                Ok(_) => {}
                Err(violation) => {
                    prop_assert_eq!(violation, Violation::Length(0x0101_0101));
                    break;
                }
            }
            let _ = assembler.message();
        }
    }

    #[test]
    fn strings_are_what_stands_between_zero_bytes(
        list in prop::collection::vec(prop::collection::vec(1_u8..=255, 0..6), 0..6),
        ends in any::<bool>(),
    ) {
        let mut payload = list.join(&0);
        // One empty string and nothing at all differ by the zero byte at the end alone.
        if ends || list.last().is_some_and(Vec::is_empty) {
            payload.push(0);
        }
        let found: Vec<&[u8]> = strings(&payload).collect();
        let list = if list.is_empty() && !payload.is_empty() { vec![Vec::new()] } else { list };
        prop_assert_eq!(found, list);
    }

    #[test]
    fn any_error_is_a_refusal(name in prop::collection::vec(any::<u8>(), 0..20)) {
        let refusal = Refusal::from_payload(&name);
        if refusal != Refusal::Other {
            prop_assert!(name.starts_with(refusal.name().as_bytes()));
        }
    }
}

#[test]
fn the_header_is_as_in_the_protocol() {
    let header = Header { kind: 2, request_id: 3, transaction_id: 4, len: 5 };
    assert_eq!(header.as_bytes(), [2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0]);
    assert_eq!(HEADER_SIZE, 16);
}

#[test]
fn operations_have_their_numbers_and_names() {
    for (operation, number, name) in [
        (Operation::CONTROL, 0, "CONTROL"),
        (Operation::WATCH_EVENT, 15, "WATCH_EVENT"),
        (Operation::ERROR, 16, "ERROR"),
        (Operation::SET_TARGET, 19, "SET_TARGET"),
        (Operation::RESET_WATCHES, 21, "RESET_WATCHES"),
        (Operation::DIRECTORY_PART, 22, "DIRECTORY_PART"),
        (Operation::GET_FEATURE, 23, "GET_FEATURE"),
        (Operation::SET_FEATURE, 24, "SET_FEATURE"),
        (Operation::GET_QUOTA, 25, "GET_QUOTA"),
        (Operation::SET_QUOTA, 26, "SET_QUOTA"),
        (Operation(20), 20, "unknown"),
    ] {
        assert_eq!((operation.0, operation.name()), (number, name));
        assert_eq!(format!("{operation:?}"), format!("{name}({number})"));
    }
}
