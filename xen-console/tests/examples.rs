//! What the examples do, with input that is not a terminal's.
#![cfg(feature = "mock")]

#[path = "../examples/echo/echo.rs"]
mod echo;

#[test]
fn echo_answers_each_line_until_there_is_no_more() {
    let mut output = Vec::new();
    echo::run(&b"hello\n\nno\x08\x08yes\xff\xfe\nwithout an end"[..], &mut output).unwrap();
    let expected = "This is a guest. It answers each line; Ctrl-D ends it.\n\
        > you said: hello\n> you said: \n> you said: yes\n> \n";
    assert_eq!(String::from_utf8(output).unwrap(), expected);
}

#[test]
fn echo_bears_any_input() {
    // More than the rings hold, in one go.
    let input = "x".repeat(200).replace("xx", "x\n");
    let mut output = Vec::new();
    echo::run(input.repeat(40).as_bytes(), &mut output).unwrap();
    assert_eq!(String::from_utf8(output).unwrap().matches("you said: x\n").count(), 4000);
    let mut output = Vec::new();
    echo::run(&[0xa5; 10_000][..], &mut output).unwrap();
    assert!(output.ends_with(b"> \n"));
}
