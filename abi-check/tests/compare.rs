//! The comparison against headers made up here: it must find what is wrong, and nothing else.

use abi_check::{
    Const, Counts, Entry, Field, Headers, Is, List, Missing, Other, Outcome, Problem, Type, Value, check,
    consts, parse, types,
};

/// What the headers of one architecture say: a structure with a union in it, a constant of each kind, and a macro.
fn headers(arch: &'static str) -> Headers {
    let field = |name, offset, size, ty| Field { name, offset, size, ty };
    let record = |name, header, size, fields| Type { name, header, size, align: 4, alias: "", fields };
    Headers {
        arch,
        types: vec![
            record("send", "event.h", 8, vec![field("port", 0, 4, "port_t"), field("", 4, 4, "send_part")]),
            record("send_part", "", 4, vec![field("dom", 0, 2, "u16"), field("pad", 2, 2, "u16")]),
            Type { alias: "send", ..record("send_t", "event.h", 8, vec![]) },
            Type { alias: "u32", ..record("port_t", "event.h", 4, vec![]) },
        ],
        values: vec![
            Const { name: "SENDOP_go", header: "event.h", value: Value::Int(4) },
            Const { name: "SENDOP_ERROR", header: "event.h", value: Value::Int(-1) },
            Const { name: "_FLAG_on", header: "event.h", value: Value::Int(3) },
            Const { name: "FLAG_on", header: "event.h", value: Value::Int(8) },
            Const { name: "PROTO", header: "event.h", value: Value::text(b"arm-abi\0") },
        ],
        others: vec![Other { name: "MASK", header: "event.h" }],
    }
}

fn both() -> [Headers; 2] {
    [headers("x86_64"), headers("aarch64")]
}

fn missing() -> Vec<Missing> {
    parse("= done as code\nMASK\n").expect("well-formed")
}

/// What agrees with the headers.
mod right {
    pub(super) const SENDOP_GO: u8 = 4;
    pub(super) const SENDOP_ERROR: i16 = -1;
    pub(super) const FLAG_ON: u32 = 8;

    #[repr(C)]
    #[derive(Debug)]
    pub(super) struct Send {
        pub(super) port: u32,
        pub(super) dom: u16,
        pub(super) pad0: u16,
    }
}

fn table() -> Vec<Entry> {
    use right::Send;
    let mut list = List::default();
    types!(list, { Send = send { port, dom, pad0: _ } });
    consts!(list, right { SENDOP_GO, SENDOP_ERROR, FLAG_ON });
    list.push("Port", "port_t", Is::Type { size: 4, align: 4 });
    list.push("proto", "PROTO", Is::Const(Value::Text("arm-abi")));
    list.entries
}

/// The table with one entry changed.
fn changed(theirs: &str, is: Is) -> Vec<Entry> {
    let mut entries = table();
    let same_kind =
        |one: &Entry| one.theirs == theirs && std::mem::discriminant(&one.is) == std::mem::discriminant(&is);
    let at = entries.iter().position(same_kind).expect("the entry is in the table");
    entries[at].is = is;
    entries
}

/// What differs, as architecture, what, ours, theirs.
fn differences(outcome: &Outcome) -> Vec<(&'static str, &'static str, String, String)> {
    let differing = outcome.problems.iter().map(|problem| match problem {
        Problem::Differs { arch, what, we, they, .. } => (*arch, *what, we.clone(), they.clone()),
        other => panic!("not a difference: {other}"),
    });
    differing.collect()
}

#[test]
fn what_agrees_is_counted_and_nothing_is_reported() {
    let outcome = check(&table(), &both(), &missing());
    assert_eq!(outcome.problems, []);
    let counts = Counts { types: 2, fields: 2, constants: 4 };
    assert_eq!(outcome.counts, [("x86_64", counts), ("aarch64", counts)]);
    assert_eq!(outcome.listed, 1);
}

#[test]
fn a_wrong_constant_is_reported_for_each_architecture() {
    let outcome = check(&changed("SENDOP_GO", Is::Const(Value::Int(5))), &both(), &missing());
    let expected = ["x86_64", "aarch64"].map(|arch| (arch, "value", "5".to_owned(), "4".to_owned()));
    assert_eq!(differences(&outcome), expected);
    let text = outcome.problems[0].to_string();
    assert!(text.contains("SENDOP_go") && text.contains("right::SENDOP_GO"), "{text}");
}

#[test]
fn a_wrong_text_is_reported() {
    let outcome = check(&changed("PROTO", Is::Const(Value::Text("x86_64-abi"))), &both()[..1], &missing());
    assert_eq!(
        differences(&outcome),
        [("x86_64", "value", "\"x86_64-abi\"".to_owned(), "\"arm-abi\"".to_owned())]
    );
}

#[test]
fn a_wrong_size_and_a_wrong_alignment_are_reported() {
    let outcome = check(&changed("send", Is::Type { size: 12, align: 8 }), &both()[..1], &missing());
    let expected = [("size", "12", "8"), ("alignment", "8", "4")];
    assert_eq!(
        differences(&outcome),
        expected.map(|(what, we, they)| ("x86_64", what, we.to_owned(), they.to_owned()))
    );
}

/// The same structure with two fields the other way round: same size, same alignment, wrong all the same.
#[test]
fn fields_out_of_order_are_reported() {
    #[repr(C)]
    struct Send {
        dom: u16,
        pad0: u16,
        port: u32,
    }
    let mut list = List::default();
    types!(list, { Send = send { dom, pad0: _, port } });
    let mut entries = table();
    entries.retain(|entry| entry.theirs != "send");
    entries.extend(list.entries);
    let outcome = check(&entries, &both()[..1], &missing());
    let mut offsets: Vec<_> = outcome.problems.iter().map(ToString::to_string).collect();
    offsets.sort();
    assert_eq!(
        offsets,
        [
            "x86_64: offset of Send.dom: 0, but send.dom of the headers has 4",
            "x86_64: offset of Send.port: 4, but send.port of the headers has 0",
        ]
    );
}

#[test]
fn a_field_of_the_wrong_width_is_reported() {
    let is = Is::Field { path: "port".to_owned(), offset: 0, size: Some(8) };
    let outcome = check(&changed("send", is), &both()[..1], &missing());
    assert_eq!(differences(&outcome), [("x86_64", "size", "8".to_owned(), "4".to_owned())]);
}

#[test]
fn a_difference_on_one_architecture_is_that_ones() {
    let mut both = both();
    both[1].values[0].value = Value::Int(6);
    let outcome = check(&table(), &both, &missing());
    assert_eq!(differences(&outcome), [("aarch64", "value", "4".to_owned(), "6".to_owned())]);
}

#[test]
fn a_name_that_no_header_has_is_reported_unless_it_is_newer() {
    let mut list = List::default();
    list.push("ours", "SENDOP_later", Is::Const(Value::Int(7)));
    let mut entries = table();
    entries.extend(list.entries);
    let outcome = check(&entries, &both(), &missing());
    let absent = Problem::Absent { ours: "ours".to_owned(), theirs: "SENDOP_later".to_owned() };
    assert_eq!(outcome.problems, [absent]);

    entries.last_mut().expect("just pushed").newer = true;
    let outcome = check(&entries, &both(), &missing());
    assert_eq!((outcome.problems, outcome.unchecked), (vec![], vec!["SENDOP_later".to_owned()]));
}

#[test]
fn what_is_newer_is_compared_with_headers_that_have_it() {
    let mut list = List::default();
    list.newer(|list| list.push("ours", "SENDOP_later", Is::Const(Value::Int(7))));
    let mut entries = table();
    entries.extend(list.entries);
    let mut newer = headers("x86_64");
    newer.values.push(Const { name: "SENDOP_later", header: "event.h", value: Value::Int(8) });
    let outcome = check(&entries, &[newer], &missing());
    assert_eq!(differences(&outcome), [("x86_64", "value", "7".to_owned(), "8".to_owned())]);
}

#[test]
fn what_the_headers_have_and_nobody_speaks_of_is_reported() {
    let uncovered = |headers: &[Headers], entries: &[Entry]| -> Vec<String> {
        let outcome = check(entries, headers, &missing());
        let items = outcome.problems.into_iter().map(|problem| match problem {
            Problem::Uncovered { item, header: "event.h" } => item,
            other => panic!("not an uncovered item: {other}"),
        });
        items.collect()
    };
    // A constant, with the number of its bit.
    let without = |theirs: &str| -> Vec<Entry> {
        table().into_iter().filter(|entry| !entry.theirs.eq_ignore_ascii_case(theirs)).collect()
    };
    assert_eq!(uncovered(&both(), &without("FLAG_on")), ["FLAG_on", "_FLAG_on"]);
    // A type; its fields are none of their own then.
    assert_eq!(uncovered(&both(), &without("send")), ["send"]);
    // A field of a type that is covered.
    let mut headers = both();
    headers[0].types[0].fields.push(Field { name: "new", offset: 8, size: 4, ty: "u32" });
    assert_eq!(uncovered(&headers, &table()), ["send.new"]);
    // A macro.
    let mut headers = both();
    headers[1].others.push(Other { name: "NEW", header: "event.h" });
    assert_eq!(uncovered(&headers, &table()), ["NEW"]);
}

#[test]
fn a_bit_number_that_is_not_its_flags_is_not_covered_by_the_flag() {
    let mut headers = both();
    headers[0].values[2].value = Value::Int(4);
    headers[1].values[2].value = Value::Int(4);
    let outcome = check(&table(), &headers, &missing());
    assert_eq!(outcome.problems, [Problem::Uncovered { header: "event.h", item: "_FLAG_on".to_owned() }]);
}

#[test]
fn a_list_that_names_what_is_there_or_what_is_gone_is_reported() {
    let stale = |text: &str| -> Vec<Problem> {
        let missing = parse(&format!("= done as code\nMASK\n= why\n{text}\n")).expect("well-formed");
        check(&table(), &both(), &missing).problems
    };
    for name in ["SENDOP_go", "send", "gone", "SENDOP_*"] {
        assert_eq!(stale(name), [Problem::Stale { name: name.to_owned() }]);
    }
    assert_eq!(stale("?gone"), []);
}
