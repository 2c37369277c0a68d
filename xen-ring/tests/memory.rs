//! Shared memory: what is within it is copied right, what is not is an error.
#![cfg(feature = "mock")]

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use xen_ring::mock::{PAGE_SIZE, SharedPages};
use xen_ring::{Backing, OutOfRange, SharedMem};

/// Offsets and lengths of any size, and more often such as lie close to the edges.
fn numbers() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..=3 * PAGE_SIZE,
        (0usize..=16).prop_map(|n| usize::MAX - n),
        (0usize..=16).prop_map(|n| 2 * PAGE_SIZE - n),
        (0usize..=16).prop_map(|n| usize::MAX - 2 * PAGE_SIZE + n),
        any::<usize>(),
    ]
}

fn is_within(offset: usize, len: usize) -> bool {
    offset.checked_add(len).is_some_and(|end| end <= 2 * PAGE_SIZE)
}

fn refused(offset: usize, len: usize) -> OutOfRange {
    OutOfRange::new(offset, len, 2 * PAGE_SIZE)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn an_access_is_right_or_an_error_that_changes_nothing(offset in numbers(), len in numbers()) {
        let mut pages = SharedPages::new(2);
        let handle = pages.clone();
        let mut mem = pages.mem();
        let expected = if is_within(offset, len) { Ok(()) } else { Err(refused(offset, len)) };
        prop_assert_eq!(mem.fill(offset, len, 0xa5), expected);
        let bytes = handle.snapshot();
        for (i, byte) in bytes.iter().enumerate() {
            let filled = expected.is_ok() && i >= offset && i - offset < len;
            prop_assert_eq!(*byte, if filled { 0xa5 } else { 0 });
        }
        // No slice is as long as some of these numbers.
        let len = len.min(3 * PAGE_SIZE);
        let expected = if is_within(offset, len) { Ok(()) } else { Err(refused(offset, len)) };
        let mut out = vec![0x5a; len];
        prop_assert_eq!(mem.read_bytes(offset, &mut out), expected);
        let unread = vec![0x5a; len];
        prop_assert_eq!(&out[..], if expected.is_ok() { &bytes[offset..offset + len] } else { &unread[..] });
        prop_assert_eq!(mem.write_bytes(offset, &vec![1; len]), expected);
        prop_assert_eq!(mem.reborrow().slice(offset, len).map(|part| part.len()), expected.map(|()| len));
    }

    #[test]
    fn records_and_words_are_within_or_refused(offset in numbers(), value: [u8; 12]) {
        let mut pages = SharedPages::new(2);
        let handle = pages.clone();
        let mem = pages.mem();
        let expected = if is_within(offset, 12) { Ok(()) } else { Err(refused(offset, 12)) };
        prop_assert_eq!(mem.write(offset, &value), expected);
        prop_assert_eq!(mem.read::<[u8; 12]>(offset), expected.map(|()| value));

        let expected = match is_within(offset, 4) && offset % 4 == 0 {
            true => Ok(()),
            false => Err(refused(offset, 4)),
        };
        let before = handle.snapshot();
        prop_assert_eq!(mem.store_u32(offset, 0x0403_0201, Ordering::Release), expected);
        prop_assert_eq!(mem.load_u32(offset, Ordering::Acquire), expected.map(|()| 0x0403_0201));
        if expected.is_err() {
            prop_assert_eq!(handle.snapshot(), before);
        } else {
            prop_assert_eq!(&handle.snapshot()[offset..offset + 4], &0x0403_0201_u32.to_ne_bytes());
        }
    }

    #[test]
    fn parts_are_where_they_say(mid in numbers(), offset in numbers(), len in numbers()) {
        let mut pages = SharedPages::new(2);
        let handle = pages.clone();
        let Ok((first, second)) = pages.mem().split_at(mid) else {
            prop_assert!(mid > 2 * PAGE_SIZE);
            return Ok(());
        };
        prop_assert_eq!((first.len(), second.len()), (mid, 2 * PAGE_SIZE - mid));
        prop_assert_eq!((first.is_empty(), second.is_empty()), (mid == 0, mid == 2 * PAGE_SIZE));
        first.fill(0, mid, 1).unwrap();
        prop_assert!(first.fill(0, mid + 1, 2).is_err());
        let room = second.len();
        match second.slice(offset, len) {
            Ok(part) => {
                prop_assert_eq!(part.len(), len);
                part.fill(0, len, 3).unwrap();
                prop_assert!(part.write_bytes(len, &[4]).is_err());
            }
            Err(error) => {
                prop_assert!(offset.checked_add(len).is_none_or(|end| end > room));
                prop_assert_eq!(error, OutOfRange::new(offset, len, room));
                return Ok(());
            }
        }
        for (i, byte) in handle.snapshot().iter().enumerate() {
            let inside = i >= mid + offset && i < mid + offset + len;
            prop_assert_eq!(*byte, if i < mid { 1 } else if inside { 3 } else { 0 });
        }
    }
}

/// Bytes that differ from their neighbours, so that one in the wrong place shows.
fn pattern(len: usize, first: u8) -> Vec<u8> {
    (0..len).map(|i| first.wrapping_add(i as u8).wrapping_mul(113) | 1).collect()
}

#[test]
fn copies_of_every_alignment_and_length_are_right_and_touch_nothing_else() {
    for offset in 0..16 {
        // Long ones go another way than short ones.
        for len in (0..80).chain(250..275).chain([512, 1000, 2049]) {
            let mut pages = SharedPages::new(1);
            let handle = pages.clone();
            let mem = pages.mem();
            let data = pattern(len, offset as u8);
            mem.write_bytes(offset, &data).unwrap();
            let bytes = handle.snapshot();
            assert_eq!(&bytes[offset..offset + len], data, "{len} bytes at {offset}");
            assert!(bytes[..offset].iter().chain(&bytes[offset + len..]).all(|&byte| byte == 0));
            // Into private memory of every alignment as well.
            let mut out = vec![0; len + 17];
            for shift in 0..8 {
                out.fill(0);
                mem.read_bytes(offset, &mut out[shift..shift + len]).unwrap();
                assert_eq!(out[shift..shift + len], data, "{len} bytes at {offset} to {shift}");
                assert!(out[..shift].iter().chain(&out[shift + len..]).all(|&byte| byte == 0));
            }
            mem.fill(offset, len, 0).unwrap();
            assert!(handle.snapshot().iter().all(|&byte| byte == 0));
        }
    }
}

fn a_record<const N: usize>() {
    for offset in 0..16 {
        let mut pages = SharedPages::new(1);
        let handle = pages.clone();
        let mem = pages.mem();
        let record: [u8; N] = pattern(N, offset as u8).try_into().unwrap();
        mem.write(offset, &record).unwrap();
        assert_eq!(mem.read::<[u8; N]>(offset), Ok(record), "{N} bytes at {offset}");
        let mut place = [0xee; N];
        mem.read_into(offset, &mut place).unwrap();
        assert_eq!(place, record);
        assert!(mem.read_into(PAGE_SIZE - N + 1, &mut [0; N]).is_err());
        let bytes = handle.snapshot();
        assert_eq!(bytes[offset..offset + N], record);
        assert!(bytes[..offset].iter().chain(&bytes[offset + N..]).all(|&byte| byte == 0));
        assert!(mem.write(PAGE_SIZE - N + 1, &record).is_err());
        assert_eq!(handle.snapshot(), bytes);
    }
}

#[test]
fn records_of_every_size_are_copied_right_wherever_they_are() {
    macro_rules! sizes {
        ($($n:literal)*) => { $(a_record::<$n>();)* };
    }
    sizes!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 20 22 24 30 31 32 36 40 48 56 63 64 65 96 100 108 112 127 128 129 256 1000);
}

#[test]
fn nothing_is_within_empty_memory_but_nothing() {
    let mut none = SharedPages::new(0);
    assert!(none.is_empty());
    let mem = none.mem();
    assert!(mem.is_empty());
    assert_eq!(mem.read_bytes(0, &mut []), Ok(()));
    assert_eq!(mem.read::<[u8; 0]>(0), Ok([]));
    assert_eq!(mem.read_bytes(1, &mut []), Err(OutOfRange::new(1, 0, 0)));
    assert_eq!(mem.read::<u8>(0), Err(OutOfRange::new(0, 1, 0)));
    assert!(mem.load_u32(0, Ordering::Relaxed).is_err());
}

#[test]
fn a_part_of_odd_alignment_has_its_own_aligned_words() {
    let mut pages = SharedPages::new(1);
    let part = pages.mem().slice(3, 64).unwrap();
    for offset in 0..60 {
        assert_eq!(part.load_u32(offset, Ordering::Acquire).is_ok(), (offset + 3) % 4 == 0, "{offset}");
    }
}

#[test]
fn errors_say_what_was_asked_of_what() {
    let text = SharedPages::new(1).mem().read::<u64>(4090).unwrap_err().to_string();
    assert_eq!(text, "access to 8 bytes at 4090 of 4096 shared bytes, or misaligned");
}

/// Two threads in one program, as two domains: nothing is undefined, and the words of indices are whole.
#[test]
fn words_are_not_torn_between_threads() {
    let rounds = if cfg!(miri) { 50 } else { 2000 };
    let pages = SharedPages::new(1);
    let (mut ours, mut theirs) = (pages.clone(), pages);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for n in 0..rounds {
                theirs.mem().store_u32(64, n * 0x1_0001, Ordering::Release).unwrap();
            }
        });
        for _ in 0..rounds {
            let word = ours.mem().load_u32(64, Ordering::Acquire).unwrap();
            assert_eq!(word >> 16, word & 0xffff);
        }
    });
}

/// Copies of different lengths and alignments, records and words, all at the same place: an access that must not race with
/// another of its size is found by Miri.
#[test]
fn threads_may_access_the_same_bytes_in_any_way() {
    let rounds = if cfg!(miri) { 10 } else { 1000 };
    let pages = SharedPages::new(1);
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let mut pages = pages.clone();
            scope.spawn(move || {
                for n in 0..rounds {
                    let mem: SharedMem<'_> = pages.mem();
                    match thread {
                        0 => mem.write_bytes(1 + n % 3, &[7; 9]).unwrap(),
                        1 => mem.read_bytes(0, &mut [0; 16]).unwrap(),
                        2 => mem.store_u32(4 * (n % 3), n as u32, Ordering::SeqCst).unwrap(),
                        _ => {
                            mem.write(4, &[n as u64; 2]).unwrap();
                            mem.fill(2, 11, 1).unwrap();
                            mem.read::<[u16; 5]>(3).unwrap();
                        }
                    }
                }
            });
        }
    });
}
