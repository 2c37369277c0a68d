//! What the types of this crate and of those below it do not let a program say.

#[test]
fn what_types_forbid_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
