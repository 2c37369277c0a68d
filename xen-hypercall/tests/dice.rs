//! Seeded chance: the same in every run, spread as it says.

use proptest::prelude::*;
use xen_hypercall::mock::{Chance, Dice};

#[test]
fn the_sequence_is_that_of_splitmix64() {
    // The generator's published first numbers for seed 1234567.
    let dice = Dice::new(1_234_567);
    let numbers: Vec<u64> = (0..3).map(|_| dice.next_u64()).collect();
    assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
}

#[test]
fn clones_share_one_sequence_and_equal_seeds_repeat_it() {
    let (one, other) = (Dice::new(7), Dice::new(7));
    let handle = one.clone();
    for _ in 0..100 {
        assert_eq!([one.next_u64(), handle.next_u64()], [other.next_u64(), other.next_u64()]);
    }
    assert_eq!(handle.seed(), 7);
}

#[test]
fn chances_come_as_often_as_they_say() {
    let dice = Dice::new(42);
    for (chance, expected) in
        [(Chance::permille(1), 100), (Chance::percent(10), 10_000), (Chance::permille(750), 75_000)]
    {
        let hits = (0..100_000).filter(|_| dice.hit(chance)).count();
        assert!(hits.abs_diff(expected) < 40 + expected / 50, "{chance:?}: {hits} hits");
    }
}

#[test]
fn never_and_always_draw_no_number() {
    let (dice, untouched) = (Dice::new(3), Dice::new(3));
    assert!(!dice.hit(Chance::NEVER) && !dice.hit(Chance::default()) && !dice.hit(Chance::percent(0)));
    assert!(
        dice.hit(Chance::ALWAYS) && dice.hit(Chance::percent(255)) && dice.hit(Chance::permille(u16::MAX))
    );
    assert_eq!(dice.next_u64(), untouched.next_u64());
}

proptest! {
    #[test]
    fn below_stays_below(seed: u64, n: u64) {
        let dice = Dice::new(seed);
        prop_assert_eq!(dice.below(0), 0);
        prop_assert!(n == 0 || dice.below(n) < n);
    }
}
