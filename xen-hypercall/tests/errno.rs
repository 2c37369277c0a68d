//! Error numbers: every result of a hypercall is one or the other, and reads well.

use proptest::prelude::*;
use xen_hypercall::Errno;

proptest! {
    #[test]
    fn every_result_is_a_value_or_an_error(result: isize) {
        match Errno::check(result) {
            Ok(value) => prop_assert_eq!(value as isize, result),
            Err(Errno(number)) => {
                prop_assert!(number > 0 && result < 0);
                prop_assert_eq!(number as usize, result.unsigned_abs().min(i32::MAX as usize));
            }
        }
    }

    #[test]
    fn what_a_hypercall_returns_comes_back(number in 1..=i32::MAX) {
        prop_assert_eq!(Errno::check(Errno(number).as_return()), Err(Errno(number)));
    }
}

#[test]
fn the_ends_of_the_range() {
    assert_eq!(Errno::check(0), Ok(0));
    assert_eq!(Errno::check(isize::MAX), Ok(isize::MAX as usize));
    assert_eq!(Errno::check(-1), Err(Errno::EPERM));
    assert_eq!(Errno::check(-(i32::MAX as isize)), Err(Errno(i32::MAX)));
    assert_eq!(Errno::check(-(i32::MAX as isize) - 1), Err(Errno(i32::MAX)));
    assert_eq!(Errno::check(isize::MIN), Err(Errno(i32::MAX)));
}

#[test]
fn errors_say_what_they_are() {
    assert_eq!(Errno::ESRCH.to_string(), "ESRCH (3): no such domain");
    assert_eq!(format!("{:?}", Errno::ESRCH), "ESRCH");
    assert_eq!(Errno(4095).to_string(), "error 4095 of Xen");
    assert_eq!(format!("{:?}", Errno(4095)), "Errno(4095)");
    let all: Vec<String> = (1..200).map(|number| Errno(number).to_string()).collect();
    let known = all.iter().filter(|text| text.starts_with('E'));
    // As many numbers as `errno.h` has; EDEADLOCK and EWOULDBLOCK are second names.
    assert_eq!(known.count(), 49);
}
