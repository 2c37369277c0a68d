//! `cargo xtask new`: a project of one's own, outside of this workspace.

mod manifest;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::check::LIBRARIES;
use crate::image::workspace;

/// Make a project for a guest of your own, from examples/hello
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The package's name
    name: String,
    /// Where to make it [default: NAME beside the folder of this workspace]
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Where the SDK's crates are: their workspace, or a folder of unpacked packages [default: this workspace]
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

/// `cargo xtask new`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let beside = || workspace().parent().unwrap_or(workspace()).join(&args.name);
    let path = args.path.clone().unwrap_or_else(beside);
    make(&args.name, &path, args.sdk.as_deref().unwrap_or(workspace()))?;
    println!("{} is made; its README.md has the commands:\n", path.display());
    println!("  cd {}", path.display());
    println!("  cargo run -- --forward 8080:80    a process of this machine; curl http://127.0.0.1:8080/\n");
    Ok(ExitCode::SUCCESS)
}

/// Makes a project `name` in the folder `path`, which depends on the crates in the folder `sdk`.
pub(crate) fn make(name: &str, path: &Path, sdk: &Path) -> Result<()> {
    ensure!(
        !LIBRARIES.contains(&name),
        "{name} is the name of a crate that the project depends on; choose another"
    );
    let crates = crates(sdk)?;
    outside_of_workspaces(path)?;
    // Cargo knows which names will do, and what else belongs to a new package.
    let new = cargo().args(["new", "--quiet", "--bin", "--name", name]).arg(path).output();
    let new = new.context("cannot start cargo")?;
    if !new.status.success() {
        let said = String::from_utf8_lossy(&new.stderr);
        bail!("cargo makes no package {name}: {}", said.trim().trim_start_matches("error: "));
    }
    let hello = workspace().join("examples/hello");
    copy(&hello.join("src"), &path.join("src"))?;
    copy(&hello.join("build.rs"), &path.join("build.rs"))?;
    let manifest = manifest::of(
        name,
        &read(&hello.join("Cargo.toml"))?,
        &read(&workspace().join("Cargo.toml"))?,
        &crates,
    )?;
    write(&path.join("Cargo.toml"), &manifest)?;
    let project = std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()))?;
    let words = [
        ("NAME", name),
        ("SDK", &workspace().display().to_string()),
        ("PROJECT", &project.display().to_string()),
    ];
    let readme = words.iter().fold(include_str!("README.md").to_owned(), |text, (word, value)| {
        text.replace(&format!("{{{word}}}"), value)
    });
    write(&path.join("README.md"), &readme)?;
    // None is made in a folder that is under version control already.
    if !path.join(".gitignore").is_file() {
        write(&path.join(".gitignore"), "/target\n")?;
    }
    Ok(())
}

/// A crate of the SDK: its name, version and folder.
#[derive(Debug, Clone, PartialEq)]
struct Crate {
    name: &'static str,
    version: String,
    path: PathBuf,
}

/// The crates in a folder, each as `NAME` or, as packages are unpacked, as `NAME-VERSION`.
fn crates(sdk: &Path) -> Result<Vec<Crate>> {
    let sdk =
        fs::canonicalize(sdk).with_context(|| format!("cannot use {} for the crates", sdk.display()))?;
    let folders: Vec<PathBuf> = fs::read_dir(&sdk)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("cannot look into {}", sdk.display()))?;
    let find = |name: &'static str| {
        let found = folders.iter().find(|path| {
            let rest = path.file_name().and_then(|file| file.to_str()?.strip_prefix(name));
            let rest = rest.map(|rest| rest.strip_prefix('-').unwrap_or(rest));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(|c: char| c.is_ascii_digit()))
                && path.join("Cargo.toml").is_file()
        });
        let path = found.with_context(|| {
            format!("there is no crate {name} in {}; --sdk wants the SDK's workspace, or a folder of its unpacked packages", sdk.display())
        })?;
        let version = manifest::version(&read(&path.join("Cargo.toml"))?)
            .with_context(|| format!("the manifest of {}", path.display()))?;
        Ok(Crate { name, version, path: path.clone() })
    };
    LIBRARIES.into_iter().map(find).collect()
}

/// A project's profiles count only where it is the root of a workspace, and cargo would make it a member of one around it.
fn outside_of_workspaces(path: &Path) -> Result<()> {
    let path = std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()))?;
    let Some(there) = path.ancestors().skip(1).find(|folder| folder.is_dir()) else { return Ok(()) };
    let mut locate = cargo();
    locate.args(["locate-project", "--workspace", "--message-format", "plain"]).current_dir(there);
    let located = locate.output().context("cannot start cargo")?;
    if located.status.success() {
        let around = String::from_utf8_lossy(&located.stdout);
        bail!(
            "{} is inside of another project, {}; choose another place by --path",
            path.display(),
            around.trim()
        );
    }
    Ok(())
}

/// Cargo, in the user's folder.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
        for entry in fs::read_dir(from).with_context(|| format!("cannot look into {}", from.display()))? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_places_that_will_not_do_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |name: &str, path: &Path| format!("{:#}", make(name, path, workspace()).unwrap_err());
        let new = dir.path().join("new");
        assert!(refused("xen-rt", &new).contains("the name of a crate that the project depends on"));
        assert!(refused("1st", &new).contains("cannot start with a digit"));
        assert!(refused("my kernel", &new).contains("invalid character"));
        assert!(!new.exists());
        assert!(refused("kernel", dir.path()).contains("already exists"));
        let inside = refused("kernel", &workspace().join("target/kernel"));
        assert!(inside.contains("inside of another project"), "{inside}");
        let elsewhere = format!("{:#}", make("kernel", &new, dir.path()).unwrap_err());
        assert!(elsewhere.contains("there is no crate xen-ring in"), "{elsewhere}");
    }

    #[test]
    fn a_project_has_what_hello_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        make("kernel", &path, workspace()).unwrap();
        let hello = workspace().join("examples/hello");
        for file in ["src/main.rs", "build.rs"] {
            assert_eq!(read(&path.join(file)).unwrap(), read(&hello.join(file)).unwrap());
        }
        assert!(read(&path.join(".gitignore")).unwrap().contains("/target"));
        let readme = read(&path.join("README.md")).unwrap();
        assert!(readme.contains("# kernel") && !readme.contains('{'), "{readme}");
        // For this machine alone: what other systems need may not be there.
        let tree = cargo().args(["tree", "--offline"]).current_dir(&path).output().unwrap();
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        // Each crate is the one that the project was told of, and cargo has no use for what is left over.
        assert!(!String::from_utf8_lossy(&tree.stderr).contains("was not used"));
    }
}
