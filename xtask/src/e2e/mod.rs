//! `cargo xtask e2e`: the unikernel on real Xen, looked at from dom0 and from this machine.

mod alone;
mod boot;
mod devices;
mod drivers;
mod embassy;
mod hello;
mod lab;
mod life;
mod new_project;
mod own_kernel;
mod seal;
mod selftest;
mod suspend;
mod web;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::tally::{Tally, report};
use lab::Lab;

use crate::dom0::Store;
use crate::platform::Arch;

/// Run the end-to-end tests on real Xen, all or those whose name contains a NAME
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Parts of the tests' names
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// The architecture
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
    /// Only a few, which together show that everything works
    #[arg(long, conflicts_with = "names")]
    few: bool,
    /// Only list the tests
    #[arg(long)]
    list: bool,
}

/// A test. It gets a bed of its group, and leaves no guest in it.
type Test = (&'static str, Box<dyn Fn(&mut Lab) -> Result<()>>);

/// One that needs nothing of the others.
type Plain = fn(&mut Lab) -> Result<()>;

/// The tests that share one boot of dom0 with this store, in order.
fn with_dom0(arch: Arch, store: Store) -> Vec<Test> {
    if store == Store::Oxenstored {
        return vec![("oxenstored", Box::new(boot::it_boots_beside_oxenstored))];
    }
    let own: [(&str, Plain); _] = [
        ("boot", boot::it_boots_and_says_what_it_has),
        ("small-memory", boot::sixteen_mebibytes_are_enough),
        ("put-survives", web::a_file_survives_the_guest),
        ("ping", web::two_hundred_pings_without_loss),
        ("idle", life::an_idle_guest_is_blocked_and_uses_no_cpu),
        ("console", life::a_line_on_the_console_is_a_command),
        ("poweroff", life::the_console_can_end_it),
        ("shutdown", life::xl_shutdown_is_obeyed),
        ("reboot", life::xl_reboot_is_obeyed),
        ("panic", seal::a_panic_ends_as_a_crash_that_says_why),
        ("seal-null", seal::page_zero_is_not_there),
        ("seal-stack", seal::the_page_under_the_stack_is_not_there),
        ("seal-text", seal::text_cannot_be_written),
        ("seal-rodata", seal::constants_cannot_be_written),
        ("seal-exec", seal::memory_cannot_be_executed),
        ("no-vif", devices::without_a_card_it_carries_on),
        ("replug", devices::a_card_is_unplugged_and_plugged_in),
        ("no-disk", devices::without_a_disk_it_carries_on),
        ("replug-disk", devices::a_disk_is_unplugged_and_another_plugged_in),
        ("restart-disk", devices::a_disk_comes_back_with_its_backend),
        ("no-fat", devices::a_disk_that_is_no_fat_is_reported),
        ("read-only", devices::a_read_only_disk_is_served_and_not_written),
        ("sectors-4096", devices::a_disk_of_large_sectors_is_read_and_written),
        ("bad-cmdline", boot::a_command_line_that_makes_no_sense_is_reported),
        ("built-in", boot::a_sealed_image_has_its_configuration_built_in),
        ("console-only", boot::an_image_of_the_console_alone_boots),
        ("ip-node", boot::the_toolstack_can_give_the_address),
        ("dhcp", boot::without_an_address_it_asks_dhcp),
        ("selftest-pair", selftest::as_a_pair),
        ("selftest-smp", selftest::on_several_vcpus),
        ("smp-stack", selftest::the_page_under_a_stack_is_not_there),
        ("hello", hello::it_answers_and_ends),
        ("embassy", embassy::its_tasks_have_card_disk_console_and_store),
        ("embassy-replug", embassy::its_devices_come_and_go_under_traffic),
        ("embassy-dhcp", embassy::without_an_address_it_asks_dhcp),
        ("line-console", hello::a_line_and_the_end),
        ("line-log", hello::a_line_in_xens_log_and_the_end),
        ("new-project", new_project::from_the_packages_alone),
        ("drivers-block", drivers::disks),
        ("drivers-net", drivers::cards),
    ];
    let x86_64: &[(&str, Plain)] = &[
        // Its kernel does without the runtime, and has an entry for PVH alone.
        ("own-kernel", own_kernel::its_heart_beats_for_a_monitor_in_dom0),
        // This Xen saves no domain of Arm's.
        ("save", suspend::it_goes_on_where_it_was),
        ("save-loaded", suspend::nothing_is_lost_when_it_is_saved_under_load),
        ("migrate", suspend::three_migrations_lose_nothing),
        ("migrate-20", suspend::twenty_migrations_lose_nothing),
        ("drivers-block-migrate", drivers::disks_in_several_lives),
        ("drivers-net-migrate", drivers::cards_in_several_lives),
        ("selftest-resume", selftest::in_several_lives),
    ];
    let more = match arch {
        Arch::X86_64 => x86_64,
        Arch::Arm64 => &[],
    };
    let own = own.into_iter().chain(more.iter().copied());
    own.map(|(name, test)| -> Test { (name, Box::new(test)) }).chain(web::checks()).collect()
}

/// A test that needs no bed.
type Alone = fn(Arch) -> Result<()>;

/// The tests without a dom0 of Linux.
fn alone(arch: Arch) -> &'static [(&'static str, Alone)] {
    match arch {
        Arch::X86_64 => &[
            ("as-dom0", boot::it_boots_as_the_first_domain),
            ("selftest-dom0", selftest::as_the_first_domain),
        ],
        // There dom0 has its memory where the machine has it, and the images have theirs where other domains have it.
        Arch::Arm64 => {
            &[("dom0less", boot::it_boots_without_a_dom0), ("dom0less-hello", hello::it_does_without_a_store)]
        }
    }
}

/// Which tests are run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Choice<'a> {
    /// All.
    All,
    /// All but the longest.
    Most,
    /// Those whose names contain one of these.
    Named(&'a [String]),
    /// Few, which together show that everything works.
    Few,
}

/// What takes as long as half of the others together.
const LONGEST: [&str; 1] = ["migrate-20"];

/// The few: each kind of device, what ends a guest, all of Xen that the crates know, several vCPUs, no toolstack.
const FEW: [&str; 9] = [
    "boot",
    "shutdown",
    "panic",
    "replug",
    "selftest-pair",
    "selftest-smp",
    "web-file",
    "web-put",
    "dom0less",
];

impl Choice<'_> {
    fn has(self, test: &str) -> bool {
        match self {
            Self::All => true,
            Self::Most => !LONGEST.contains(&test),
            Self::Named(names) => names.iter().any(|name| test.contains(name)),
            Self::Few => FEW.contains(&test),
        }
    }
}

/// Runs the tests; success when none failed.
pub fn run(args: &Args) -> Result<ExitCode> {
    let choice = match &args.names[..] {
        _ if args.few => Choice::Few,
        [] => Choice::All,
        names => Choice::Named(names),
    };
    if args.list {
        let tests = STORES.into_iter().flat_map(|store| with_dom0(args.arch, store)).map(|(name, _)| name);
        let tests = tests.chain(alone(args.arch).iter().map(|(name, _)| *name));
        tests.filter(|name| choice.has(name)).for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    let tally = run_some(args.arch, choice)?;
    println!("{tally}");
    Ok(tally.exit_code())
}

const STORES: [Store; 2] = [Store::Xenstored, Store::Oxenstored];

/// Runs the chosen tests.
pub(crate) fn run_some(arch: Arch, choice: Choice<'_>) -> Result<Tally> {
    let mut tally = Tally::default();
    for store in STORES {
        let tests = with_dom0(arch, store).into_iter().filter(|(name, _)| choice.has(name));
        let tests: Vec<Test> = tests.collect();
        if tests.is_empty() {
            continue;
        }
        let mut lab = Lab::new(arch, store)?;
        for (name, test) in tests {
            report(&mut tally, name, || lab.run(name, &test));
        }
    }
    for (name, test) in alone(arch).iter().filter(|(name, _)| choice.has(name)) {
        report(&mut tally, name, || test(arch));
    }
    if tally == Tally::default() {
        bail!("no test has such a name ({choice:?}); cargo xtask e2e --list shows them");
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_few_are_among_all() {
        let names = |arch| {
            let tests = STORES.into_iter().flat_map(move |store| with_dom0(arch, store));
            tests.map(|(name, _)| name).chain(alone(arch).iter().map(|(name, _)| *name)).collect::<Vec<_>>()
        };
        let all = names(Arch::Arm64);
        assert!(FEW.iter().all(|name| all.contains(name)), "{FEW:?} are not all among {all:?}");
        let all = names(Arch::X86_64);
        assert!(FEW.iter().all(|name| all.contains(name) || *name == "dom0less"), "{all:?}");
    }

    #[test]
    fn a_part_of_a_name_chooses() {
        let names = ["web".to_owned(), "boot".to_owned()];
        let choice = Choice::Named(&names);
        assert!(choice.has("web-put") && choice.has("boot") && !choice.has("ping"));
        assert!(Choice::All.has("ping") && !Choice::Few.has("ping"));
        assert!(Choice::Most.has("migrate") && !Choice::Most.has("migrate-20"));
    }
}
