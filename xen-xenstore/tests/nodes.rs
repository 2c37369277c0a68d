//! Values, directories and permissions.
#![cfg(feature = "mock")]

mod common;

use common::{HOME, ID, Machine, data, names, refused};
use xen_hypercall::DomId;
use xen_xenstore::wire::{Operation, Refusal};
use xen_xenstore::{Error, Path};

#[test]
fn what_is_written_is_read() {
    let machine = Machine::new();
    let mut xs = machine.client();
    xs.write("data/a", b"hello").unwrap();
    assert_eq!(xs.read("data/a"), Ok(&b"hello"[..]));
    assert_eq!(machine.store.read(&data("a")).as_deref(), Some("hello"));
    // An absolute path is the same node.
    assert_eq!(xs.read(&data("a")), Ok(&b"hello"[..]));
    // A value may be empty, and may have any bytes.
    xs.write("data/a", b"").unwrap();
    assert_eq!(xs.read("data/a"), Ok(&b""[..]));
    let all: Vec<u8> = (0..=255).collect();
    xs.write("data/a", &all).unwrap();
    assert_eq!(xs.read("data/a"), Ok(&*all));
    assert_eq!(xs.read_str("data/a"), Err(Error::NotText));
}

#[test]
fn values_are_parsed() {
    let machine = Machine::new();
    let mut xs = machine.client();
    for (value, number) in [
        (&b"42"[..], Ok(42)),
        (b" 42\n", Ok(42)),
        (b"", Err(Error::BadValue)),
        (b"4 2", Err(Error::BadValue)),
        (b"-1", Err(Error::BadValue)),
        (b"4294967296", Err(Error::BadValue)),
        (b"0x10", Err(Error::BadValue)),
        (b"42\0", Err(Error::BadValue)),
        (b"\xff", Err(Error::NotText)),
    ] {
        xs.write("data/n", value).unwrap();
        assert_eq!(xs.read_parsed::<u32>("data/n"), number, "{value:?}");
        assert_eq!(xs.read_optional::<u32>("data/n"), number.map(Some), "{value:?}");
    }
    assert_eq!(refused(xs.read_parsed::<u32>("data/none")), Refusal::NotFound);
    assert_eq!(xs.read_optional::<u32>("data/none"), Ok(None));
    xs.write_display("data/n", format_args!("{}-{}", 1, 2)).unwrap();
    assert_eq!(xs.read_str("data/n"), Ok("1-2"));
    assert_eq!(xs.write_display("data/n", "x".repeat(257)), Err(Error::TooLong));
}

#[test]
fn nodes_above_are_made_and_those_below_go_with_them() {
    let machine = Machine::new();
    let mut xs = machine.client();
    xs.write("data/a/b/c", b"1").unwrap();
    assert_eq!(xs.read("data/a/b"), Ok(&b""[..]));
    xs.mkdir("data/a/b").unwrap();
    xs.mkdir("data/d/e").unwrap();
    assert_eq!(names(&mut xs, "data"), Ok(vec!["a".into(), "d".into()]));
    assert_eq!(names(&mut xs, "data/d/e"), Ok(vec![]));
    // A node of a similar name is not below.
    xs.write("data/a-b", b"2").unwrap();
    xs.remove("data/a").unwrap();
    assert_eq!(refused(xs.read("data/a/b/c")), Refusal::NotFound);
    assert_eq!(xs.read("data/a-b"), Ok(&b"2"[..]));
    // It is no error while the one above is there.
    xs.remove("data/a").unwrap();
    assert_eq!(refused(xs.remove("data/a/b/c")), Refusal::NotFound);
    assert_eq!(refused(names(&mut xs, "data/a")), Refusal::NotFound);
}

#[test]
fn paths_that_are_none_are_not_even_asked_for() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let asked = xs.stats().requests;
    let long = format!("/{}", "a".repeat(3071));
    let relative = "a".repeat(2048);
    for path in ["", "/a/", "a//b", "a b", "ä", "a\0b", "a.b", &long, &relative] {
        assert_eq!(xs.read(path), Err(Error::BadPath), "{path}");
        assert_eq!(xs.write(path, b""), Err(Error::BadPath), "{path}");
        assert_eq!(xs.watch(path).err(), Some(Error::BadPath), "{path}");
        assert_eq!(names(&mut xs, path), Err(Error::BadPath), "{path}");
    }
    assert_eq!(xs.write("data/a", &[0; 4090]), Err(Error::TooLong));
    assert_eq!(xs.stats().requests, asked);
    // The longest ones are.
    assert_eq!(refused(xs.read(&long[..3071])), Refusal::AccessDenied);
    assert_eq!(refused(xs.read(&format!("data/{}", &relative[6..]))), Refusal::NotFound);
}

#[test]
fn a_path_is_put_together() {
    let path = Path::new("/local/domain/1").unwrap();
    assert_eq!(&*path.join("data").unwrap(), "/local/domain/1/data");
    assert_eq!(&*Path::new("/").unwrap().join("a").unwrap(), "/a");
    assert_eq!(&*Path::format(format_args!("a/{}", 7)).unwrap(), "a/7");
    assert_eq!(path.join(""), Err(Error::BadPath));
    assert_eq!(path.join("a/"), Err(Error::BadPath));
    assert_eq!(path.join("a".repeat(256)), Err(Error::BadPath));
    assert_eq!(Path::new(&"a".repeat(257)), Err(Error::BadPath));
    assert_eq!(Path::new(&"a".repeat(256)).unwrap().len(), 256);
    assert_eq!(format!("{path} {path:?}"), "/local/domain/1 \"/local/domain/1\"");
}

#[test]
fn a_directory_larger_than_a_message_is_listed_whole() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let long = "n".repeat(90);
    let all: Vec<String> = (0..400).map(|number| format!("{long}-{number:04}")).collect();
    for name in &all {
        machine.store.write(&data(name), "");
    }
    assert_eq!(names(&mut xs, "data"), Ok(all.clone()));
    // In a transaction it is the transaction's view.
    xs.transaction(|transaction| {
        transaction.remove(&format!("data/{}", all[7]))?;
        let mut seen = Vec::new();
        transaction.directory("data", |name| seen.push(name.to_owned()))?;
        assert_eq!(seen.len(), 399);
        assert!(!seen.contains(&all[7]));
        Ok(())
    })
    .unwrap();
    assert_eq!(names(&mut xs, "data").unwrap().len(), 399);
    assert_eq!(machine.store.transactions(ID), 0);
}

#[test]
fn a_large_directory_that_changes_meanwhile_gives_no_name_twice() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let name = |number: usize| format!("{}-{number:04}", "n".repeat(90));
    for number in 0..200 {
        machine.store.write(&data(&name(number)), "");
    }
    let store = machine.store.clone();
    let mut seen = Vec::new();
    xs.directory("data", |name| {
        // Each name seen is gone at once, and another one comes before all that are there.
        store.remove(&data(name));
        store.write(&data(&format!("a-{}", seen.len())), "");
        seen.push(name.to_owned());
    })
    .unwrap();
    assert_eq!(seen, (0..200).map(name).collect::<Vec<_>>());
}

#[test]
fn permissions_are_read_and_set() {
    let machine = Machine::new();
    let mut xs = machine.client();
    xs.write("data/a", b"").unwrap();
    let list = |xs: &mut xen_xenstore::Xenstore<'_, _>, path: &str| {
        let mut list = Vec::new();
        xs.permissions(path, |domain, letter| list.push((domain.0, letter))).map(|()| list)
    };
    assert_eq!(list(&mut xs, "data/a"), Ok(vec![(1, 'n')]));
    xs.set_permissions("data/a", "r1\0b7\0w8").unwrap();
    assert_eq!(list(&mut xs, "data/a"), Ok(vec![(1, 'r'), (7, 'b'), (8, 'w')]));
    assert_eq!(machine.store.permissions(&data("a")).as_deref(), Some("r1\0b7\0w8\0"));
    for nonsense in ["", "x1", "r", "r-1", "r65536", "1"] {
        assert_eq!(refused(xs.set_permissions("data/a", nonsense)), Refusal::Invalid, "{nonsense}");
    }
    // A guest cannot give a node away, nor take one.
    assert_eq!(refused(xs.set_permissions("data/a", "n2")), Refusal::NotPermitted);
    assert_eq!(refused(xs.set_permissions("name", "n1")), Refusal::AccessDenied);
    assert_eq!(refused(xs.set_permissions("data/none", "n1")), Refusal::NotFound);
}

#[test]
fn what_is_not_permitted_is_refused() {
    let machine = Machine::new();
    let other = machine.xen.domain(DomId(2));
    machine.store.connect(&other);
    let mut xs = machine.client();
    machine.store.write("/local/domain/2/data/secret", "x");
    // Somebody else's, whether it exists or not.
    for path in ["/local/domain/2/data/secret", "/local/domain/2/data/none", "/local/domain/2/none", "/none"]
    {
        assert_eq!(refused(xs.read(path)), Refusal::AccessDenied, "{path}");
        assert_eq!(refused(xs.write(path, b"")), Refusal::AccessDenied, "{path}");
        assert_eq!(refused(xs.remove(path)), Refusal::AccessDenied, "{path}");
        assert_eq!(refused(names(&mut xs, path)), Refusal::AccessDenied, "{path}");
    }
    // Our own, but the toolstack's to write.
    assert_eq!(xs.read_str("name"), Ok("d1"));
    assert_eq!(refused(xs.write("name", b"")), Refusal::AccessDenied);
    assert_eq!(refused(xs.mkdir("anything")), Refusal::AccessDenied);
    assert_eq!(refused(xs.remove(HOME)), Refusal::AccessDenied);
    // What is permitted by an entry, and no more.
    machine.store.set_permissions("/local/domain/2/data/secret", "n2\0r1");
    assert_eq!(xs.read_str("/local/domain/2/data/secret"), Ok("x"));
    assert_eq!(refused(xs.write("/local/domain/2/data/secret", b"")), Refusal::AccessDenied);
    machine.store.set_permissions("/local/domain/2/data/secret", "n2\0w1");
    assert_eq!(refused(xs.read("/local/domain/2/data/secret")), Refusal::AccessDenied);
    xs.write("/local/domain/2/data/secret", b"y").unwrap();
    assert_eq!(machine.store.read("/local/domain/2/data/secret").as_deref(), Some("y"));
    // A new node is owned by who makes it, and otherwise as the one above.
    machine.store.write("/shared", "");
    machine.store.set_permissions("/shared", "b0\0r9");
    xs.write("/shared/mine/deep", b"").unwrap();
    assert_eq!(machine.store.permissions("/shared/mine").as_deref(), Some("b1\0r9\0"));
    assert_eq!(machine.store.permissions("/shared/mine/deep").as_deref(), Some("b1\0r9\0"));
}

#[test]
fn limits_are_errors() {
    let machine = Machine::new();
    let mut xs = machine.client();
    // The value with its path.
    xs.write("data/a", &vec![1; 2047 - data("a").len()]).unwrap();
    assert_eq!(refused(xs.write("data/a", &vec![1; 2048 - data("a").len()])), Refusal::NoSpace);
    assert_eq!(refused(xs.set_permissions("data/a", "n1\0r2\0r3\0r4\0r5\0r6")), Refusal::NoSpace);
    let mut limits = xen_xenstore::mock::Limits::default();
    limits.nodes = 20;
    machine.store.set_limits(limits);
    let made = (0..100).take_while(|number| xs.mkdir(&format!("data/n/{number}")).is_ok()).count();
    assert!((10..20).contains(&made), "{made}");
    assert_eq!(refused(xs.mkdir("data/n/more")), Refusal::NoSpace);
    assert_eq!(refused(xs.write("data/more", b"")), Refusal::NoSpace);
    xs.write("data/a", b"").unwrap();
    xs.remove("data/n/0").unwrap();
    xs.mkdir("data/n/more").unwrap();
}

#[test]
fn domains_are_asked_about() {
    let machine = Machine::new();
    let mut xs = machine.client();
    assert_eq!(&*xs.domain_path(DomId(7)).unwrap(), "/local/domain/7");
    assert_eq!(xs.is_introduced(ID), Ok(true));
    assert_eq!(xs.is_introduced(DomId(0)), Ok(true));
    assert_eq!(xs.is_introduced(DomId(2)), Ok(false));
    machine.store.connect(&machine.xen.domain(DomId(2)));
    assert_eq!(xs.is_introduced(DomId(2)), Ok(true));
    machine.store.disconnect(DomId(2));
    assert_eq!(xs.is_introduced(DomId(2)), Ok(false));
}

#[test]
fn wait_for_waits_for_a_value() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let store = machine.store.clone();
    // It comes to be what is waited for by way of nothing, nonsense, and another number.
    let mut values = vec![Some("7"), Some("3"), Some("x"), Some(""), None];
    let mut turn = 0;
    machine.xen.add_actor("writer", move |_| {
        turn += 1;
        if turn % 3 != 0 {
            return !values.is_empty();
        }
        match values.pop() {
            None => return false,
            Some(None) => store.remove(&data("n")),
            Some(Some(value)) => store.write(&data("n"), value),
        }
        true
    });
    let before = machine.store.watches(ID);
    let deadline = machine.after(5);
    assert_eq!(xs.wait_for::<u32>("data/n", deadline, |number| *number == 7), Ok(Some(7)));
    assert!(xs.now() < deadline);
    assert_eq!(xs.wait_for::<u32>("data/n", deadline, |number| *number == 8), Ok(None));
    assert_eq!(xs.now(), deadline);
    assert_eq!(machine.store.watches(ID), before);
    // What may not be read is not there yet.
    assert_eq!(xs.wait_for::<u32>("/vm", machine.after(5), |_| true), Ok(None));
    store_later(&machine, "/vm", "8");
    assert_eq!(xs.wait_for::<u32>("/vm", machine.after(5), |_| true), Ok(Some(8)));
    assert_eq!(machine.store.watches(ID), before);
}

/// A node that is written at first, and may be read some time later.
fn store_later(machine: &Machine, path: &'static str, value: &str) {
    machine.store.write(path, value);
    let store = machine.store.clone();
    let mut turn = 0;
    machine.xen.add_actor("toolstack", move |_| {
        turn += 1;
        if turn == 20 {
            store.set_permissions(path, "n0\0r1");
        }
        turn <= 20
    });
}

#[test]
fn errors_say_what_was_refused() {
    let machine = Machine::new();
    let mut xs = machine.client();
    let error = xs.read("data/none").unwrap_err();
    assert_eq!(error, Error::Refused(Operation::READ, Refusal::NotFound));
    assert_eq!(error.to_string(), "xenstore refused READ: no such node (ENOENT)");
    assert!(error.is_not_found() && !error.is_again());
}

#[test]
fn a_machine_without_xenstore_says_so() {
    let xen = xen_hypercall::mock::MockXen::new();
    xen_evtchn::mock::install(&xen);
    let guest = xen.domain(ID);
    let events = xen_evtchn::EventChannels::new(&guest.boot().unwrap()).unwrap();
    assert_eq!(xen_xenstore::Xenstore::new(&events).err(), Some(Error::NoStore));
    let port = xen_hypercall::event::alloc_unbound(&guest, xen_hypercall::DomId(0)).unwrap();
    guest.set_hvm_param(xen_hypercall::hvm::HvmParam::STORE_PFN, 0x77);
    guest.set_hvm_param(xen_hypercall::hvm::HvmParam::STORE_EVTCHN, port.into());
    assert_eq!(
        xen_xenstore::Xenstore::new(&events).err(),
        Some(Error::Unreachable(xen_hypercall::Gfn(0x77)))
    );
}
