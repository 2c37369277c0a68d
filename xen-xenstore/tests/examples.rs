//! What the examples do, with input that is not a terminal's.
#![cfg(feature = "mock")]

#[path = "../examples/shell/machine.rs"]
mod machine;
#[path = "../examples/shell/nodes.rs"]
mod nodes;
#[path = "../examples/shell/shell.rs"]
mod shell;

/// What the shell says to some lines, without its greeting.
fn said(input: &str) -> String {
    let mut output = Vec::new();
    shell::run(input.as_bytes(), &mut output, false).unwrap();
    let output = String::from_utf8(output).unwrap();
    output.split_once('\n').unwrap().1.to_owned()
}

#[test]
fn looking_around() {
    assert_eq!(said("pwd\nls\n"), "/local/domain/1\ncontrol\ndata\ndevice\ndomid\nname\n");
    assert_eq!(
        said("cd device/vif/0\npwd\ncat mac\ncat ../../vbd/51712/device-type"),
        "\
        /local/domain/1/device/vif/0\n00:16:3e:01:02:03\ndisk\n"
    );
    assert_eq!(
        said("cat device/vif/0/backend\ncd /local/domain/0/backend/vif/1/0\nls\ncat ip"),
        "\
        /local/domain/0/backend/vif/1/0\nbridge\nfrontend\nfrontend-id\nip\nstate\n10.0.0.2\n"
    );
    assert_eq!(
        said("tree device/vif"),
        "\
        /local/domain/1/device/vif\n  0\n    backend = \"/local/domain/0/backend/vif/1/0\"\n    \
        backend-id = \"0\"\n    mac = \"00:16:3e:01:02:03\"\n    state = \"1\"\n"
    );
}

#[test]
fn changing() {
    assert_eq!(
        said("write data/a/b hello  world\ncat data/a/b\nmkdir data/c\nls data\nrm data/a\nls data"),
        "\
        hello  world\na\nc\nc\n"
    );
    assert_eq!(
        said("write data/a 1\nperms data/a\nperms data/a r1 b7 n8\nperms data/a\n"),
        "\
        domain 1 is the owner; all others may do nothing\n\
        domain 1 is the owner; all others may read\ndomain 7 may read and write\ndomain 8 may do nothing\n"
    );
}

#[test]
fn what_does_not_work_says_why() {
    for (line, answer) in [
        ("cat data/none", "/local/domain/1/data/none: xenstore refused READ: no such node (ENOENT)"),
        ("write name x", "/local/domain/1/name: xenstore refused WRITE: not permitted (EACCES)"),
        ("cd nowhere", "/local/domain/1/nowhere: xenstore refused DIRECTORY: no such node (ENOENT)"),
        ("ls /", "/: xenstore refused DIRECTORY: not permitted (EACCES)"),
        ("cat a.b", "/local/domain/1/a.b: not a path of xenstore"),
        ("dom0 write a.b 1", "/local/domain/1/a.b: not a path of xenstore"),
        ("dom0 ls", "domain 0 does write, rm, and perms with a list"),
        ("dom0 begin", "dom0: write, rm, or perms with a list"),
        (
            "perms data x1",
            "/local/domain/1/data: xenstore refused SET_PERMS: an argument is not valid (EINVAL)",
        ),
        ("cat", "cat: which node?"),
        ("commit", "there is no transaction; `begin` begins one"),
        ("unwatch data", "/local/domain/1/data: not watched"),
        ("frobnicate", "frobnicate: no such command; `help` lists them"),
        ("\u{fffd}", "\u{fffd}: no such command; `help` lists them"),
    ] {
        assert_eq!(said(line), format!("{answer}\n"), "{line}");
    }
}

#[test]
fn watching() {
    assert_eq!(
        said("watch data\nwatch\n\nwrite data/a 1\nwrite data/a 1\nunwatch data\nwrite data/a 2\n"),
        "\
        * /local/domain/1/data may have changed\n/local/domain/1/data\n\
        * /local/domain/1/data may have changed\n* /local/domain/1/data may have changed\n"
    );
    assert_eq!(
        said("watch device/vif/0\ndom0 write device/vif/0/state 5\n"),
        "\
        * /local/domain/1/device/vif/0 may have changed\n* /local/domain/1/device/vif/0 may have changed\n"
    );
}

#[test]
fn transactions() {
    assert_eq!(
        said("begin\nwrite data/a 1\ncat data/a\nabort\nls data\n"),
        "1\naborted; nothing has changed\n"
    );
    assert_eq!(said("begin\nwrite data/a 1\ncommit\ncat data/a\n"), "committed\n1\n");
    // The end of the input is no commit, and neither is to quit.
    assert_eq!(said("begin\nwrite data/a 1\nquit\npwd"), "aborted; nothing has changed\n");
    assert_eq!(said("begin\nwrite data/a 1\n"), "aborted; nothing has changed\n");
    assert_eq!(
        said("write data/a 1\nbegin\ncat data/a\nwrite data/b x\ndom0 write data/a 2\ncommit\ncat data/b\n"),
        "\
        1\nit clashed with another change, and is done again:\n2\ncommitted\nx\n"
    );
    assert!(said("begin\nwatch data\n").starts_with("in a transaction there are ls"));
}

#[test]
fn help_knows_every_command() {
    let help = said("help");
    for command in [
        "ls", "tree", "cd", "cat", "write", "mkdir", "rm", "perms", "watch", "unwatch", "begin", "dom0",
        "status", "quit",
    ] {
        assert!(help.lines().any(|line| line.split([' ', ',']).next() == Some(command)), "{command}");
    }
    assert!(said("status").starts_with("ServerFeatures(RECONNECTION | ERROR)\nStats {"));
    assert_eq!(said("quit\nls"), "");
}
