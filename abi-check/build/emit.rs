//! Turns bindgen's output into a table that the check can walk.
//!
//! Sizes, alignments and offsets are those of bindgen's types as the compiler lays them out; bindgen's own assertions,
//! compiled with them, say that they are clang's for the architecture in question.

use std::collections::BTreeSet;
use std::path::Path;

use quote::ToTokens;
use syn::{Fields, Item, Type};

use crate::scan::Text;
use crate::wrap::{OTHER, TEXT, VALUE};

/// What the table is when there are no headers.
pub(crate) fn absent(reason: &str) -> String {
    format!(
        "pub fn headers() -> Result<Vec<crate::Headers>, &'static str> {{ Err({reason:?}) }}\n{}",
        from("")
    )
}

/// The whole table.
pub(crate) fn present(include: &Path, arches: &[&str], modules: &str) -> String {
    let calls: Vec<String> = arches.iter().map(|arch| format!("{arch}::headers()")).collect();
    format!(
        "pub fn headers() -> Result<Vec<crate::Headers>, &'static str> {{ Ok(vec![{}]) }}\n{}{modules}",
        calls.join(", "),
        from(&include.display().to_string())
    )
}

fn from(include: &str) -> String {
    format!("pub const FROM: &str = {include:?};\n")
}

/// One architecture's part.
pub(crate) fn module(arch: &str, bindings: &str, text: &Text) -> Result<String, String> {
    let file = syn::parse_file(bindings).map_err(|error| format!("bindgen's output for {arch}: {error}"))?;
    let constants: BTreeSet<String> = file
        .items
        .iter()
        .filter_map(|item| if let Item::Const(item) = item { Some(item.ident.to_string()) } else { None })
        .collect();
    let (mut types, mut values, mut others) = (String::new(), String::new(), String::new());
    for item in &file.items {
        match item {
            Item::Struct(item) if item.generics.params.is_empty() => {
                types.push_str(&record(&item.ident.to_string(), &item.fields, false, text));
            }
            Item::Union(item) => {
                types.push_str(&record(
                    &item.ident.to_string(),
                    &Fields::Named(item.fields.clone()),
                    true,
                    text,
                ));
            }
            Item::Type(item) => types.push_str(&alias(&item.ident.to_string(), &item.ty, text)),
            Item::Const(item) => {
                let name = item.ident.to_string();
                if let Some(plain) = name.strip_prefix(OTHER) {
                    others.push_str(&format!(
                        "crate::Other {{ name: {plain:?}, header: {:?} }},\n",
                        place(plain, text)
                    ));
                } else {
                    values.push_str(&value(&name, &constants, text));
                }
            }
            Item::ForeignMod(_) => {
                return Err(format!(
                    "clang gives no value to a constant for {arch}: {}",
                    item.to_token_stream()
                ));
            }
            _ => {}
        }
    }
    Ok(format!(
        "pub mod {arch} {{\n{bindings}\n\
         pub fn headers() -> crate::Headers {{ crate::Headers {{ arch: {arch:?},\n\
         types: vec![{types}],\nvalues: vec![{values}],\nothers: vec![{others}] }} }}\n}}\n"
    ))
}

fn place(name: &str, text: &Text) -> String {
    let macro_of = text.macros.iter().find(|found| found.name == name).map(|found| found.header.as_str());
    // The header that lists the errors pastes a prefix in front of each name.
    let pasted =
        || name.strip_prefix("XEN_").and_then(|name| text.header(name)).filter(|header| *header == "errno.h");
    macro_of.or_else(|| text.header(name)).or_else(pasted).unwrap_or_default().to_owned()
}

fn value(name: &str, constants: &BTreeSet<String>, text: &Text) -> String {
    let (plain, value) = if let Some(plain) = name.strip_prefix(VALUE) {
        (plain, format!("crate::Value::Int({name} as i64)"))
    } else if let Some(plain) = name.strip_prefix(TEXT) {
        (plain, format!("crate::Value::text({name})"))
    } else if constants.contains(&format!("{VALUE}{name}")) || constants.contains(&format!("{TEXT}{name}")) {
        // bindgen's own reading of a macro.
        return String::new();
    } else {
        // An enumerator, of these headers or of one that they include.
        (name, format!("crate::Value::Int({name} as i64)"))
    };
    match place(plain, text) {
        header if header.is_empty() => String::new(),
        header => format!("crate::Const {{ name: {plain:?}, header: {header:?}, value: {value} }},\n"),
    }
}

fn record(name: &str, fields: &Fields, union: bool, text: &Text) -> String {
    let mut list = String::new();
    for field in fields {
        let Some(ident) = &field.ident else { continue };
        let ident = ident.to_string();
        if ident.starts_with("_bitfield_align")
            || ident.starts_with("__bindgen_pad")
            || ident == "bindgen_union_field"
        {
            continue;
        }
        let inner = inner(&field.ty);
        let inner_text = inner.to_token_stream();
        let offset =
            if union { "0".to_owned() } else { format!("memoffset::span_of!({name}, {ident}).start") };
        // An anonymous part's fields belong to what it is in.
        let shown = if ident.starts_with("__bindgen_anon") { "" } else { &ident };
        let shown = shown.strip_prefix("r#").unwrap_or(shown);
        // C's keywords are not Rust's: bindgen appends an underscore to a field's name that is one.
        let shown = shown.strip_suffix('_').unwrap_or(shown);
        list.push_str(&format!(
            "crate::Field {{ name: {shown:?}, offset: {offset}, size: size_of::<{inner_text}>(), ty: {:?} }},\n",
            type_name(inner)
        ));
    }
    definition(name, &format!("vec![{list}]"), "", text)
}

fn alias(name: &str, ty: &Type, text: &Text) -> String {
    definition(name, "vec![]", &type_name(ty), text)
}

fn definition(name: &str, fields: &str, alias: &str, text: &Text) -> String {
    format!(
        "crate::Type {{ name: {name:?}, header: {:?}, size: size_of::<{name}>(), align: align_of::<{name}>(), \
         alias: {alias:?}, fields: {fields} }},\n",
        text.header(name).unwrap_or_default()
    )
}

/// The type that bindgen wraps where a union cannot be copied.
fn inner(ty: &Type) -> &Type {
    let Type::Path(path) = ty else { return ty };
    let Some(last) = path.path.segments.last() else { return ty };
    if last.ident != "__BindgenUnionField" && last.ident != "ManuallyDrop" {
        return ty;
    }
    let syn::PathArguments::AngleBracketed(args) = &last.arguments else { return ty };
    match args.args.first() {
        Some(syn::GenericArgument::Type(inner)) => inner,
        _ => ty,
    }
}

/// The name of a type that has one.
fn type_name(ty: &Type) -> String {
    match ty {
        Type::Path(path) => path.path.get_ident().map(ToString::to_string).unwrap_or_default(),
        _ => String::new(),
    }
}
