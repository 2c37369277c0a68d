//! The manifest of a new project: that of examples/hello, with what it takes from this workspace written out.

use anyhow::{Context, Result};
use toml_edit::{DocumentMut, InlineTable, Item, Table, Value};

use super::Crate;

/// What follows the tables of the example: its place in a workspace, and how images are built.
const REST: &str = "
# A project by itself: profiles count at the root of a workspace alone.
[workspace]

# The image: small, and without an unwinder. To find the line of an address that a crash tells, build without `strip` and ask
# addr2line.
[profile.image]
inherits = \"release\"
panic = \"abort\"
opt-level = \"z\"
lto = \"fat\"
codegen-units = 1
strip = true

# Where the crates are. Without this table they come from crates.io, once they are published.
[patch.crates-io]
";

/// Writes the manifest of a project `name`, from those of the example and of the workspace.
pub(super) fn of(name: &str, hello: &str, workspace: &str, crates: &[Crate]) -> Result<String> {
    let hello: DocumentMut = hello.parse().context("the manifest of examples/hello")?;
    let workspace: DocumentMut = workspace.parse().context("the manifest of the workspace")?;
    let edition =
        workspace["workspace"]["package"]["edition"].as_str().context("no edition in the workspace")?;
    let mut new = DocumentMut::new();
    let mut package = Table::new();
    for (key, value) in [("name", name), ("version", "0.1.0"), ("edition", edition)] {
        package[key] = toml_edit::value(value);
    }
    new["package"] = Item::Table(package);
    for key in ["bin", "features"] {
        new[key] = hello.get(key).cloned().with_context(|| format!("no {key} in the example"))?;
    }
    for bin in new["bin"].as_array_of_tables_mut().into_iter().flat_map(|bins| bins.iter_mut()) {
        bin["name"] = toml_edit::value(name);
    }
    for key in ["dependencies", "build-dependencies"] {
        let table =
            hello.get(key).and_then(Item::as_table).with_context(|| format!("no {key} in the example"))?;
        let mut dependencies = Table::new();
        for (name, item) in table {
            let written = dependency(name, item, &workspace["workspace"]["dependencies"][name], crates);
            dependencies[name] = Item::Value(written.with_context(|| format!("{name} of the example"))?);
        }
        new[key] = Item::Table(dependencies);
    }
    let mut patches = Table::new();
    for Crate { name, path, .. } in crates {
        let path = path.to_str().with_context(|| format!("cargo takes no path like {}", path.display()))?;
        patches[name] = toml_edit::value(InlineTable::from_iter([("path", path)]));
    }
    Ok(format!("{new}{REST}{patches}"))
}

/// The version that a crate's manifest says.
pub(super) fn version(manifest: &str) -> Result<String> {
    let manifest: DocumentMut = manifest.parse()?;
    let version = manifest.get("package").and_then(|package| package.get("version")).and_then(Item::as_str);
    version.map(str::to_owned).context("it says no version")
}

/// What the example says of a dependency, with what it leaves to the workspace.
fn dependency(name: &str, own: &Item, shared: &Item, crates: &[Crate]) -> Result<Value> {
    let table = |item: &Item| match item.as_str() {
        Some(version) => Some(InlineTable::from_iter([("version", version)])),
        None => item.as_table_like().map(|table| {
            table
                .iter()
                .filter_map(|(key, value)| Some((key.to_owned(), value.as_value()?.clone())))
                .collect()
        }),
    };
    let own = table(own).context("it is no dependency")?;
    let inherits = own.get("workspace").and_then(Value::as_bool) == Some(true);
    let mut written =
        if inherits { table(shared).context("the workspace has none")? } else { InlineTable::new() };
    for (key, value) in &own {
        match (key, written.get_mut(key).and_then(Value::as_array_mut), value.as_array()) {
            ("workspace", ..) => {}
            // Features add up.
            (_, Some(all), Some(more)) => {
                more.iter().for_each(|value| all.push_formatted(value.clone()));
                all.fmt();
            }
            _ => drop(written.insert(key, value.clone())),
        }
    }
    if let Some(Crate { version, .. }) = crates.iter().find(|krate| krate.name == name) {
        written.remove("path");
        written.insert("version", version.as_str().into());
    }
    written.fmt();
    match written.get("version") {
        Some(version) if written.len() == 1 => Ok(version.clone().decorated(" ", "")),
        _ => Ok(Value::InlineTable(written)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKSPACE: &str = "[workspace.package]\nedition = \"2024\"\n[workspace.dependencies]\n\
        xen-rt = { version = \"0.1.0\", path = \"xen-rt\" }\n\
        smoltcp = { version = \"0.14\", default-features = false, features = [\"a\"] }\nlog = \"0.4\"\n";

    const HELLO: &str = "[package]\nname = \"hello\"\nedition.workspace = true\n[[bin]]\nname = \"hello\"\ntest = false\n\
        [features]\ndefault = [\"hosted\"]\n# A process.\nhosted = [\"xen-rt/hosted\"]\n\
        [dependencies]\nxen-rt = { workspace = true }\nsmoltcp = { workspace = true, features = [\"b\"] }\nlog = { workspace = true }\n\
        [build-dependencies]\nxen-rt = { path = \"../../xen-rt\", default-features = false, features = [\"build\"] }\n";

    #[test]
    fn what_the_example_takes_from_the_workspace_is_written_out() {
        let crates = [Crate { name: "xen-rt", version: "0.3.1".into(), path: "/sdk/xen-rt-0.3.1".into() }];
        let text = of("kernel", HELLO, WORKSPACE, &crates).unwrap();
        let written: DocumentMut = text.parse().unwrap();
        assert_eq!(written["package"]["name"].as_str(), Some("kernel"));
        assert_eq!(written["package"]["edition"].as_str(), Some("2024"));
        assert_eq!(written["bin"][0]["name"].as_str(), Some("kernel"));
        assert!(text.contains("# A process.\nhosted = [\"xen-rt/hosted\"]"), "{text}");
        let dependencies = &written["dependencies"];
        assert_eq!(dependencies["xen-rt"].as_str(), Some("0.3.1"));
        assert_eq!(dependencies["log"].as_str(), Some("0.4"));
        assert_eq!(dependencies["smoltcp"]["default-features"].as_bool(), Some(false));
        assert_eq!(dependencies["smoltcp"]["features"].to_string().trim(), "[\"a\", \"b\"]");
        let build = &written["build-dependencies"]["xen-rt"];
        assert_eq!((build["version"].as_str(), build.get("path").is_none()), (Some("0.3.1"), true));
        assert_eq!(written["patch"]["crates-io"]["xen-rt"]["path"].as_str(), Some("/sdk/xen-rt-0.3.1"));
        assert!(!text.contains("workspace = true") && text.contains("[workspace]"), "{text}");
    }
}
