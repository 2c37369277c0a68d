//! Runs bindgen over the headers, with a constant in C for each of their macros.
//!
//! bindgen itself evaluates only simple macros; a constant that clang initialises has the macro's value whatever casts and
//! expressions it is made of. A macro that is no value does not compile as one: it is tried as a text, then left.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::scan::Text;

/// Prefixes of what is added to the headers.
pub(crate) const VALUE: &str = "abi_value_";
pub(crate) const TEXT: &str = "abi_text_";
pub(crate) const OTHER: &str = "abi_other_";

/// What the headers expect of the C library, so that none is needed, for no architecture.
const PRELUDE: &str = "\
typedef __INT8_TYPE__ int8_t; typedef __UINT8_TYPE__ uint8_t;
typedef __INT16_TYPE__ int16_t; typedef __UINT16_TYPE__ uint16_t;
typedef __INT32_TYPE__ int32_t; typedef __UINT32_TYPE__ uint32_t;
typedef __INT64_TYPE__ int64_t; typedef __UINT64_TYPE__ uint64_t;
typedef __SIZE_TYPE__ size_t; typedef __UINTPTR_TYPE__ uintptr_t;
";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Value,
    Text,
    Other,
}

/// Returns bindgen's output.
pub(crate) fn read(
    out: &Path,
    include: &Path,
    arch: &str,
    target: &str,
    headers: &[&str],
    text: &Text,
) -> Result<String, String> {
    let path = out.join(format!("headers-{arch}.h"));
    let mut forms: Vec<(&str, Form)> = text
        .macros
        .iter()
        .map(|found| (found.name.as_str(), if found.function { Form::Other } else { Form::Value }))
        .collect();
    // A macro takes at most three forms, and each round settles all that the one before has shown not to compile.
    for _ in 0..8 {
        let (wrapper, lines) = wrapper(headers, &forms);
        fs::write(&path, wrapper).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        let (error, wrong) = match run(&path, include, target) {
            Ok(bindings) => {
                let left = unevaluated(&bindings, &forms);
                if left.is_empty() {
                    return Ok(bindings);
                }
                (String::from("constants without a value"), left)
            }
            Err(bindgen::BindgenError::ClangDiagnostic(error)) => {
                let wrong =
                    error_lines(&error, &path).iter().filter_map(|line| lines.get(line).copied()).collect();
                (error, wrong)
            }
            Err(error) => return Err(format!("bindgen fails on Xen's headers for {arch}: {error}")),
        };
        let mut changed = false;
        for at in wrong {
            if let Some((_, form)) = forms.get_mut(at) {
                changed |= *form != Form::Other;
                *form = if *form == Form::Value { Form::Text } else { Form::Other };
            }
        }
        if !changed {
            return Err(format!("clang does not take Xen's headers for {arch}:\n{error}"));
        }
    }
    Err(format!("the macros of Xen's headers for {arch} do not settle"))
}

/// The text to compile, and which line holds which macro.
fn wrapper(headers: &[&str], forms: &[(&str, Form)]) -> (String, BTreeMap<usize, usize>) {
    let mut text = PRELUDE.to_owned();
    for header in headers {
        let _ = writeln!(text, "#include <xen/{header}>");
    }
    let mut line = text.lines().count();
    let mut lines = BTreeMap::new();
    for (at, (name, form)) in forms.iter().enumerate() {
        let _ = match form {
            Form::Value => {
                writeln!(text, "#ifdef {name}\nstatic const long long {VALUE}{name} = (long long)({name});")
            }
            Form::Text => writeln!(text, "#ifdef {name}\nstatic const char *const {TEXT}{name} = {name};"),
            Form::Other => writeln!(text, "#ifdef {name}\nstatic const int {OTHER}{name} = 1;"),
        };
        text.push_str("#endif\n");
        lines.insert(line + 2, at);
        line += 3;
    }
    (text, lines)
}

fn run(path: &Path, include: &Path, target: &str) -> Result<String, bindgen::BindgenError> {
    let args = [
        format!("--target={target}"),
        "-ffreestanding".to_owned(),
        "-nostdinc".to_owned(),
        "-ferror-limit=0".to_owned(),
        "-w".to_owned(),
        "-D__XEN_INTERFACE_VERSION__=__XEN_LATEST_INTERFACE_VERSION__".to_owned(),
        format!("-I{}", include.display()),
    ];
    bindgen::Builder::default()
        .header(path.to_string_lossy())
        .clang_args(args)
        .use_core()
        .prepend_enum_name(false)
        .generate_comments(false)
        .derive_debug(false)
        .ignore_functions()
        .formatter(bindgen::Formatter::None)
        .generate()
        .map(|bindings| bindings.to_string())
}

/// The macros whose constant compiles and has no value before the program runs: a text's address is a number to C.
fn unevaluated(bindings: &str, forms: &[(&str, Form)]) -> Vec<usize> {
    let is = |(name, form): &(&str, Form)| match form {
        Form::Value => {
            bindings.contains(&format!("static {VALUE}{name} "))
                || bindings.contains(&format!("static {VALUE}{name}:"))
        }
        Form::Text => {
            bindings.contains(&format!("static {TEXT}{name} "))
                || bindings.contains(&format!("static {TEXT}{name}:"))
        }
        Form::Other => false,
    };
    forms.iter().enumerate().filter(|(_, form)| is(form)).map(|(at, _)| at).collect()
}

/// The lines of the wrapper that clang complains of.
fn error_lines(error: &str, path: &Path) -> Vec<usize> {
    let start = format!("{}:", path.display());
    let number = |line: &str| line.strip_prefix(&start)?.split(':').next()?.parse().ok();
    error.lines().filter(|line| line.contains("error:")).filter_map(number).collect()
}
