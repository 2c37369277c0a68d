//! `cargo xtask bed`: runs a command in the test bed's dom0.

use crate::dom0::{Dom0, Options, Store};
use crate::platform::Arch;
use crate::qemu::Forward;
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Boot real Xen with a Linux dom0 in QEMU, run a command in dom0, print its output.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The architecture
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
    /// The bash script to run in dom0
    #[arg(long, value_name = "CMD")]
    shell: String,
    /// Copy a file into dom0 first
    #[arg(long, value_name = "FILE=PATH", value_parser = parse_put)]
    put: Vec<(PathBuf, String)>,
    /// The xenstore that runs in dom0
    #[arg(long, value_enum, default_value_t)]
    store: Store,
    /// Memory of the whole machine, in MiB [default: 2048, and 1024 for arm64]
    #[arg(long)]
    memory: Option<u32>,
    /// A raw disk image that becomes /dev/vda of dom0
    #[arg(long)]
    disk: Option<PathBuf>,
    /// The port of this machine that leads to port 80 of the guest at 10.0.0.2 [default: a free one]
    #[arg(long, value_name = "PORT")]
    http_port: Option<u16>,
    /// Another port that leads inside
    #[arg(long, value_name = "PORT:ADDRESS:PORT", value_parser = parse_forward)]
    forward: Vec<Forward>,
    /// How long the command may take, in seconds
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// Show what Xen and dom0 print on the serial line
    #[arg(long)]
    serial: bool,
}

/// Runs the command. The exit code is the one of the script.
pub fn run(args: &Args) -> Result<ExitCode> {
    let dom0 = Dom0::boot(&Options {
        arch: args.arch,
        store: args.store,
        memory: args.memory,
        disk: args.disk.clone(),
        http_port: args.http_port,
        forwards: args.forward.clone(),
        echo: args.serial,
        ..Options::default()
    })?;
    for (file, path) in &args.put {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        dom0.put(path, &bytes)?;
    }
    let output = dom0.sh(&args.shell, Duration::from_secs(args.timeout))?;
    print!("{}", output.stdout);
    Ok(ExitCode::from(u8::try_from(output.status).unwrap_or(1)))
}

fn parse_put(text: &str) -> Result<(PathBuf, String), String> {
    let (file, path) = text.split_once('=').ok_or("it has to be FILE=PATH")?;
    Ok((file.into(), path.to_owned()))
}

fn parse_forward(text: &str) -> Result<Forward, String> {
    let parse = || {
        let mut parts = text.split(':');
        let forward = Forward {
            host: parts.next()?.parse().ok()?,
            address: parts.next()?.parse().ok()?,
            port: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(forward)
    };
    parse().ok_or_else(|| "it has to be PORT:ADDRESS:PORT, such as 2222:10.0.0.2:22".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_has_three_parts() {
        let forward = parse_forward("2222:10.0.0.2:22").expect("valid");
        assert_eq!((forward.host, forward.address.octets(), forward.port), (2222, [10, 0, 0, 2], 22));
        assert!(parse_forward("2222:10.0.0.2").is_err());
        assert!(parse_forward("2222:10.0.0.2:22:1").is_err());
    }
}
