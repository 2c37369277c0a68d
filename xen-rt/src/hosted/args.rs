//! What the arguments of the process say of the machine that the guest is to run on.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::prelude::rust_2024::*;
use std::str::FromStr;

use clap::{CommandFactory, FromArgMatches, Parser};

/// The address of the guest, where nothing says another.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// Most vCPUs: as many as xl gives a guest of the kind.
const MOST_VCPUS: i64 = 128;

const ENDS: &str = "\
What the guest writes to its console goes to the standard output, and each line of the standard input is typed there.
Ctrl-C asks the guest to power off, as `xl shutdown` does; a second one ends the process at once.

Exit status: 0 the guest has powered off; 1 the machine cannot be made; 2 wrong arguments; 3 the guest wants to be
started again; 101 the guest has crashed; 130 ended by Ctrl-C.";

/// A Xen guest as a process of this machine, on mocks of Xen's side of every interface
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(disable_version_flag = true, after_help = ENDS)]
pub(super) struct Args {
    /// The guest's name in xenstore [default: that of its package]
    #[arg(long)]
    name: Option<String>,
    /// Memory for the pages of the guest's drivers, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) memory: u32,
    /// The guest's vCPUs
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MOST_VCPUS))]
    pub(super) vcpus: u32,
    /// A raw disk image, which the guest may write to; the first is xvda, the next xvdb, and so on
    #[arg(long = "disk", value_name = "FILE")]
    pub(super) disks: Vec<PathBuf>,
    /// Give the guest no network card
    #[arg(long, conflicts_with_all = ["forwards", "pcap"])]
    pub(super) no_vif: bool,
    /// A TCP port of this machine that leads to one of the guest; 0 takes any that is free
    #[arg(long = "forward", value_name = "HOSTPORT:GUESTPORT")]
    pub(super) forwards: Vec<Forward>,
    /// The guest's address, to which ports lead; xenstore tells the guest [default: that of a word ip=A.B.C.D in COMMAND LINE, or
    /// 10.0.0.2]
    #[arg(long, value_name = "A.B.C.D")]
    address: Option<Ipv4Addr>,
    /// Write what passes the network card to FILE when the guest ends, for Wireshark
    #[arg(long, value_name = "FILE")]
    pub(super) pcap: Option<PathBuf>,
    /// Migrate the guest again and again, so many milliseconds after the last time, if it says that it can be suspended
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) migrate: Option<u64>,
    /// The guest's command line
    #[arg(value_name = "COMMAND LINE")]
    words: Vec<String>,
}

/// A port of this machine, and the one of the guest that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forward {
    /// Zero: any that is free.
    pub(super) host: u16,
    pub(super) guest: u16,
}

impl FromStr for Forward {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, guest) = text.split_once(':').ok_or("two ports are wanted, such as 8080:80")?;
        let port = |text: &str| text.parse().map_err(|_| "a port is a number up to 65535, as in 8080:80");
        match (port(host)?, port(guest)?) {
            (_, 0) => Err("the guest has no port 0"),
            (host, guest) => Ok(Self { host, guest }),
        }
    }
}

impl Args {
    /// Those of this process, which is the kernel `name`. Wrong ones end it, with the reason.
    pub(super) fn of_process(name: &'static str) -> Self {
        Self::read(name, std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    fn read(name: &'static str, args: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let command = Self::command().name(name).bin_name(name);
        let mut read = Self::from_arg_matches(&command.try_get_matches_from(args)?)?;
        read.name.get_or_insert_with(|| name.into());
        Ok(read)
    }

    pub(super) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("guest")
    }

    pub(super) fn command_line(&self) -> String {
        self.words.join(" ")
    }

    /// The guest's address.
    pub(super) fn address(&self) -> Ipv4Addr {
        let word = |line: &str| {
            let word = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("ip="))?;
            word.split('/').next()?.parse().ok()
        };
        self.address.or_else(|| word(&self.command_line())).unwrap_or(ADDRESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Args, clap::Error> {
        Args::read("hello", line.split(' ').map(OsString::from))
    }

    #[test]
    fn what_is_not_said_is_as_on_the_bed() {
        let args = read("target/debug/hello").unwrap();
        assert_eq!((args.name(), args.memory, args.address()), ("hello", 32, ADDRESS));
        assert!(args.disks.is_empty() && args.forwards.is_empty() && !args.no_vif);
        assert_eq!(args.command_line(), "");
    }

    #[test]
    fn words_that_are_no_options_are_the_command_line() {
        let args =
            read("hello ip=192.168.7.9/16 --forward 8080:80 --name web log=debug --forward 0:22").unwrap();
        assert_eq!(args.command_line(), "ip=192.168.7.9/16 log=debug");
        assert_eq!(args.address(), Ipv4Addr::new(192, 168, 7, 9));
        let forwards = [Forward { host: 8080, guest: 80 }, Forward { host: 0, guest: 22 }];
        assert_eq!((args.name(), &args.forwards[..]), ("web", &forwards[..]));
        let args = read("hello --address 10.0.0.7 ip=10.0.0.8 -- --verbose").unwrap();
        assert_eq!((args.address(), &*args.command_line()), ([10, 0, 0, 7].into(), "ip=10.0.0.8 --verbose"));
    }

    #[test]
    fn wrong_arguments_are_told_of_with_the_way_out() {
        for (line, wanted) in [
            ("hello --forward 8080", "two ports are wanted, such as 8080:80"),
            ("hello --forward 80800:80", "a port is a number up to 65535, as in 8080:80"),
            ("hello --forward 80:0", "the guest has no port 0"),
            ("hello --memory 0", "0 is not in 1.."),
            ("hello --vcpus 0", "0 is not in 1..=128"),
            ("hello --no-vif --forward 8080:80", "cannot be used with"),
            ("hello --dsik x", "--disk"),
        ] {
            let error = read(line).unwrap_err().to_string();
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }
}
