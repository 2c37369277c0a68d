//! `cargo xtask run`: from nothing to the unikernel's page in a browser.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::check;
use crate::dom0::{Dom0, Options};
use crate::guest::{Guest, KERNEL, Listed, Spec};
use crate::image::{self, workspace};
use crate::web::Site;
use crate::{fat, host};

/// Boot the unikernel on real Xen and serve its own documentation on this machine
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The port of this machine that leads to the unikernel's web server
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The unikernel's memory, in MiB
    #[arg(long, default_value_t = 32)]
    memory: u32,
    /// The unikernel's command line
    #[arg(long, default_value = "ip=10.0.0.2/24 gw=10.0.0.1")]
    cmdline: String,
    /// A raw disk image to serve, written to by PUT and DELETE [default: one with the documentation]
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Give the unikernel no disk
    #[arg(long, conflicts_with = "disk")]
    no_disk: bool,
    /// The unikernel's network card, as in xl's `vif=`
    #[arg(long, default_value = "bridge=xenbr0,mac=00:16:3e:00:00:02")]
    vif: String,
    /// Give the unikernel no network card
    #[arg(long)]
    no_vif: bool,
    /// Run the application as a process of this machine, on the mocks of Xen: no Xen, no root
    #[arg(long, conflicts_with_all = ["memory", "vif", "no_vif", "once"])]
    host: bool,
    /// End as soon as the first page was served, with success
    #[arg(long)]
    once: bool,
}

/// How long a guest may take to answer its first request.
const PATIENCE: Duration = Duration::from_secs(60);

/// Builds, boots, shows the console until the guest ends or Ctrl-C.
pub fn run(args: &Args) -> Result<ExitCode> {
    // Dropped at once: QEMU takes it. Found out now, it does not cost a build and a boot.
    TcpListener::bind(("127.0.0.1", args.port))
        .with_context(|| format!("port {} is in use; choose another by --port", args.port))?;
    let disk = match &args.disk {
        _ if args.no_disk => None,
        Some(disk) if disk.is_file() => Some(disk.clone()),
        Some(disk) => bail!("there is no disk image {}", disk.display()),
        None => Some(documentation()?),
    };
    if args.host {
        return host::run(args.port, disk.as_deref(), &args.cmdline);
    }
    let unikernel = image::build(&image::Options::default())?;
    let spinner = spinner("booting Xen and dom0");
    let dom0 = Dom0::boot(&Options { disk: disk.clone(), http_port: Some(args.port), ..Options::default() })?;
    spinner.set_message("starting the unikernel");
    dom0.put(KERNEL, &fs::read(&unikernel.path)?)?;
    let spec = Spec {
        memory: args.memory,
        cmdline: args.cmdline.clone(),
        vif: (!args.no_vif).then(|| args.vif.clone()),
        disk: disk.as_ref().and(Spec::default().disk),
        watched: true,
        ..Spec::default()
    };
    let guest = Guest::start(&dom0, &spec)?;
    let mut console = guest.console()?;
    let site = Site::new(args.port);
    let mut shown = 0;
    let mut show = |text: &str| {
        if let Some(new) = text.get(shown..) {
            print!("{}", new.replace('\r', ""));
            shown = text.len();
        }
        let _ = std::io::Write::flush(&mut std::io::stdout());
    };
    spinner.finish_and_clear();
    let address = format!("http://127.0.0.1:{}/", args.port);
    let mut announced = args.no_vif;
    let mut looked = Instant::now();
    let end = Instant::now() + PATIENCE;
    loop {
        let _ = console.read_more(Duration::from_millis(200));
        show(&console.text());
        if !announced && site.get("/-/status").is_ok_and(|answer| answer.status == 200) {
            announced = true;
            println!("\n    {address}          the files of its disk\n    {address}-/status  how it does\n");
            println!("Ctrl-C ends it.");
        }
        if announced && args.once {
            let _ = console.read_more(Duration::from_secs(2));
            show(&console.text());
            return Ok(ExitCode::SUCCESS);
        }
        if !announced && Instant::now() > end {
            bail!("the unikernel did not answer at {address} within {PATIENCE:?}; its console is above");
        }
        if looked.elapsed() > Duration::from_secs(2) {
            looked = Instant::now();
            let listed = guest.list()?;
            let crashed = listed.as_ref().is_some_and(Listed::crashed);
            let running = listed.is_some_and(|listed| !listed.ended());
            if !running {
                let _ = console.read_more(Duration::from_millis(500));
                show(&console.text());
                if crashed {
                    bail!("the unikernel has crashed; its console is above");
                }
                println!("The unikernel has ended.");
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// A disk with this workspace's README and documentation, made anew only when they changed.
fn documentation() -> Result<PathBuf> {
    let mut cargo = image::cargo();
    let target = image::out_dir()?.join("doc");
    cargo.args(["doc", "--no-deps", "--all-features", "--package", "webserver"]);
    for library in check::LIBRARIES {
        cargo.args(["--package", library]);
    }
    cargo.arg("--target-dir").arg(&target);
    if !cargo.status().context("cannot start cargo")?.success() {
        bail!("the documentation does not build; cargo says why above");
    }
    let mut files = BTreeMap::new();
    collect(&target.join("doc"), "doc", &mut files)?;
    let readme = fs::read(workspace().join("README.md")).context("cannot read README.md")?;
    files.insert("README.md".to_owned(), readme);
    files.insert("index.html".to_owned(), front_page(&files).into_bytes());
    let disk = image::out_dir()?.join("disk.img");
    let key = fingerprint(&files);
    let key_file = disk.with_extension("key");
    if disk.is_file() && fs::read_to_string(&key_file).is_ok_and(|old| old == key) {
        return Ok(disk);
    }
    let bar = ProgressBar::new(files.len() as u64).with_message("making the disk");
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} files") {
        bar.set_style(style);
    }
    fat::sized(&disk, &files, &bar)?;
    bar.finish_and_clear();
    fs::write(&key_file, key)?;
    Ok(disk)
}

/// All files below a folder, by their path.
fn collect(dir: &Path, name: &str, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let path = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &path, files)?;
        } else if !entry.file_name().to_string_lossy().starts_with('.') {
            files.insert(path, fs::read(entry.path())?);
        }
    }
    Ok(())
}

fn front_page(files: &BTreeMap<String, Vec<u8>>) -> String {
    let crates = files.keys().filter_map(|path| path.strip_prefix("doc/")?.strip_suffix("/index.html"));
    let crates = crates.filter(|name| !name.contains('/') && *name != "src");
    let list: String =
        crates.map(|name| format!("<li><a href=\"/doc/{name}/index.html\">{name}</a>\n")).collect();
    format!(
        "<!DOCTYPE html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>A unikernel on Xen</title><style>body{{font:18px/1.6 system-ui,sans-serif;max-width:42rem;\
         margin:3rem auto;padding:0 1rem;color:#1b1f24}}a{{color:#0b57d0}}</style>\n\
         <h1>It works</h1><p>This page comes from a unikernel in Rust that runs straight on Xen: its own TCP, its own file \
         system, no operating system below.</p>\n<p><a href=\"/-/status\">How it does</a> &middot; \
         <a href=\"/README.md\">README</a></p>\n<h2>The crates it is made of</h2><ul>\n{list}</ul></html>\n"
    )
}

fn fingerprint(files: &BTreeMap<String, Vec<u8>>) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn spinner(message: &'static str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
