//! The console under `embedded_io`.
#![cfg(all(feature = "mock", feature = "embedded-io-v0-7"))]

mod common;

use std::time::Duration;

use common::{Machine, pattern};
use embedded_io::{Error as _, ErrorKind, Read, ReadExactError, ReadReady, Write, WriteReady};
use xen_console::adapters::{ConsoleIo, IoError};

#[test]
fn streams_wait_but_not_for_ever() {
    let machine = Machine::new();
    let mut console = machine.console();
    let mut io = ConsoleIo::new(&mut console, Duration::from_secs(2));
    io.write_all(&pattern(10_000)).unwrap();
    io.flush().unwrap();
    assert!(machine.daemon.output() == pattern(10_000));
    machine.daemon.type_in(&pattern(3000));
    let mut buf = [0; 3000];
    io.read_exact(&mut buf).unwrap();
    assert!(buf[..] == pattern(3000));
    assert_eq!(io.read(&mut []), Ok(0));
    assert_eq!((io.read_ready(), io.write_ready()), (Ok(false), Ok(true)));
    assert_eq!(machine.xen.now(), Duration::ZERO);

    machine.daemon.stall(true);
    assert_eq!(io.read_exact(&mut buf), Err(ReadExactError::Other(IoError::TimedOut)));
    assert_eq!(machine.xen.now(), Duration::from_secs(2));
    assert_eq!(io.write_all(&pattern(3000)), Err(IoError::TimedOut));
    assert_eq!(io.write(&[]), Ok(0));
    assert_eq!(io.write_ready(), Ok(false));
    assert_eq!(io.flush(), Err(IoError::TimedOut));
    assert_eq!(machine.xen.now(), Duration::from_secs(6));
    assert_eq!(IoError::TimedOut.kind(), ErrorKind::TimedOut);

    machine.daemon.poke(3076, 5000);
    let broken = io.read(&mut buf).unwrap_err();
    assert_eq!(broken.kind(), ErrorKind::InvalidData);
    assert!(broken.to_string().contains("broken"));
}
