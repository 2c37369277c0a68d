//! `cargo xtask e2e`: the unikernel on real Xen, looked at from dom0 and from this machine.

mod boot;
mod devices;
mod drivers;
mod lab;
mod life;
mod new_project;
mod own_kernel;
mod seal;
mod selftest;
mod web;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::tally::{Tally, report};
use lab::Lab;

use crate::dom0::Store;

/// Run the end-to-end tests on real Xen, all or those whose name contains NAME
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A part of the tests' names
    name: Option<String>,
    /// Only list the tests
    #[arg(long)]
    list: bool,
}

/// A test. It gets a bed of its group, and leaves no guest in it.
type Test = (&'static str, Box<dyn Fn(&mut Lab) -> Result<()>>);

/// One that needs nothing of the others.
type Plain = fn(&mut Lab) -> Result<()>;

/// The tests that share one boot of dom0 with this store, in order.
fn with_dom0(store: Store) -> Vec<Test> {
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
        ("own-kernel", own_kernel::its_heart_beats_for_a_monitor_in_dom0),
        ("new-project", new_project::from_the_packages_alone),
        ("drivers-block", drivers::disks),
        ("drivers-net", drivers::cards),
    ];
    own.into_iter().map(|(name, test)| -> Test { (name, Box::new(test)) }).chain(web::checks()).collect()
}

/// A test that needs no bed.
type Alone = fn() -> Result<()>;

/// The tests without a dom0 of Linux.
const ALONE: [(&str, Alone); 2] =
    [("pvh-dom0", boot::it_boots_as_the_first_domain), ("selftest-dom0", selftest::as_the_first_domain)];

/// Runs the tests; success when none failed.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.list {
        let tests = STORES.into_iter().flat_map(with_dom0).map(|(name, _)| name);
        tests.chain(ALONE.map(|(name, _)| name)).for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    let tally = run_all(args.name.as_deref())?;
    println!("{tally}");
    Ok(tally.exit_code())
}

const STORES: [Store; 2] = [Store::Xenstored, Store::Oxenstored];

/// Runs all tests whose names contain `name`.
pub fn run_all(name: Option<&str>) -> Result<Tally> {
    let chosen = |test: &str| name.is_none_or(|name| test.contains(name));
    let mut tally = Tally::default();
    for store in STORES {
        let tests: Vec<Test> = with_dom0(store).into_iter().filter(|(name, _)| chosen(name)).collect();
        if tests.is_empty() {
            continue;
        }
        let mut lab = Lab::new(store)?;
        for (name, test) in tests {
            report(&mut tally, name, || {
                lab.enter(name)?;
                test(&mut lab).map_err(|error| lab.explain(error))
            });
        }
    }
    for (name, test) in ALONE.into_iter().filter(|(name, _)| chosen(name)) {
        report(&mut tally, name, test);
    }
    if tally == Tally::default() {
        bail!("no test's name contains {:?}; cargo xtask e2e --list shows them", name.unwrap_or_default());
    }
    Ok(tally)
}
