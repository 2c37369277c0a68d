//! `cargo xtask run`: from nothing to the unikernel's page in a browser, or to the console of another image.

mod documentation;
mod watch;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;

use crate::dom0::{self, Dom0, Options};
use crate::guest::{Guest, KERNEL, Spec};
use crate::host;
use crate::image::{self, format};
use crate::platform::Arch;
use crate::qemu::Forward;
use crate::web::Site;
use watch::Watch;

/// Boot the unikernel on real Xen and serve its own documentation on this machine
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The architecture [default: x86-64, or that of the image]
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// Boot an image of your own, with no disk but that of --disk: an ELF file with a PVH entry, or an arm64 Image
    #[arg(long, value_name = "FILE", conflicts_with_all = ["host", "no_disk", "once"])]
    image: Option<PathBuf>,
    /// The port of this machine that leads to the guest at 10.0.0.2
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The guest's port that it leads to
    #[arg(long, default_value_t = 80)]
    guest_port: u16,
    /// The guest's memory, in MiB
    #[arg(long, default_value_t = 32)]
    memory: u32,
    /// How many vCPUs the guest has
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// The guest's command line [default: ip=10.0.0.2/24 gw=10.0.0.1, and none for an image of your own]
    #[arg(long)]
    cmdline: Option<String>,
    /// A raw disk image, which the guest may write to [default: one with the documentation]
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Give the unikernel no disk
    #[arg(long, conflicts_with = "disk")]
    no_disk: bool,
    /// The guest's network card, as in xl's `vif=`
    #[arg(long, default_value = "bridge=xenbr0,mac=00:16:3e:00:00:02")]
    vif: String,
    /// Give the guest no network card
    #[arg(long)]
    no_vif: bool,
    /// Run the application as a process of this machine, on the mocks of Xen: no Xen, no root
    #[arg(long, conflicts_with_all = ["arch", "guest_port", "memory", "vcpus", "vif", "no_vif", "once"])]
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
    if let Some(disk) = args.disk.as_ref().filter(|disk| !disk.is_file()) {
        bail!("there is no disk image {}", disk.display());
    }
    match &args.image {
        Some(image) => run_image(args, image),
        None => run_unikernel(args),
    }
}

/// Boots an image of the user's own.
fn run_image(args: &Args, path: &Path) -> Result<ExitCode> {
    let bytes = fs::read(path).with_context(|| format!("cannot read the image {}", path.display()))?;
    let (arch, bytes) = format::loadable(bytes).with_context(|| format!("cannot boot {}", path.display()))?;
    let wanted = args.arch.unwrap_or(arch);
    ensure!(
        wanted == arch,
        "{} is for {}, not for {}",
        path.display(),
        arch.platform().name,
        wanted.platform().name
    );
    let (spinner, dom0) = boot(args, arch, args.disk.clone())?;
    spinner.set_message("starting the guest");
    let guest = start(args, &dom0, &bytes, "guest", "")?;
    spinner.finish_and_clear();
    if !args.no_vif {
        println!("127.0.0.1:{} leads to port {} of {}.", args.port, args.guest_port, dom0::GUEST);
    }
    println!("Ctrl-C ends it.");
    let mut watch = Watch::new(&dom0, guest, "the guest")?;
    loop {
        if let Some(end) = watch.step()? {
            return Ok(end);
        }
    }
}

/// Builds and boots the unikernel, and says when its pages are there.
fn run_unikernel(args: &Args) -> Result<ExitCode> {
    const CMDLINE: &str = "ip=10.0.0.2/24 gw=10.0.0.1";
    let disk = match &args.disk {
        _ if args.no_disk => None,
        Some(disk) => Some(disk.clone()),
        None => Some(documentation::disk()?),
    };
    if args.host {
        return host::run(args.port, disk.as_deref(), args.cmdline.as_deref().unwrap_or(CMDLINE));
    }
    let arch = args.arch.unwrap_or_default();
    let unikernel = image::build(&image::Options { arch, ..image::Options::default() })?;
    let (spinner, dom0) = boot(args, arch, disk)?;
    spinner.set_message("starting the unikernel");
    let guest = start(args, &dom0, &fs::read(&unikernel.path)?, "unikernel", CMDLINE)?;
    let mut watch = Watch::new(&dom0, guest, "the unikernel")?;
    let site = Site::new(args.port);
    spinner.finish_and_clear();
    let address = format!("http://127.0.0.1:{}/", args.port);
    let mut announced = args.no_vif;
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(end) = watch.step()? {
            return Ok(end);
        }
        if !announced && site.get("/-/status").is_ok_and(|answer| answer.status == 200) {
            announced = true;
            println!("\n    {address}          the files of its disk\n    {address}-/status  how it does\n");
            println!("Ctrl-C ends it.");
        }
        if announced && args.once {
            watch.show(Duration::from_secs(2));
            return Ok(ExitCode::SUCCESS);
        }
        if !announced && Instant::now() > end {
            bail!("the unikernel did not answer at {address} within {PATIENCE:?}; its console is above");
        }
    }
}

/// Boots Xen and dom0, with the port that leads to the guest.
fn boot(args: &Args, arch: Arch, disk: Option<PathBuf>) -> Result<(ProgressBar, Dom0)> {
    let spinner = ProgressBar::new_spinner().with_message("booting Xen and dom0");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let forward = Forward { host: args.port, address: dom0::GUEST, port: args.guest_port };
    let options = Options { arch, disk, forwards: vec![forward], ..Options::default() };
    Ok((spinner, Dom0::boot(&options)?))
}

/// Starts an image as the guest.
fn start<'d>(args: &Args, dom0: &'d Dom0, image: &[u8], name: &str, cmdline: &str) -> Result<Guest<'d>> {
    dom0.put(KERNEL, image)?;
    let disk = args.disk.is_some() || (args.image.is_none() && !args.no_disk);
    let spec = Spec {
        name: name.to_owned(),
        memory: args.memory,
        vcpus: args.vcpus,
        cmdline: args.cmdline.clone().unwrap_or_else(|| cmdline.to_owned()),
        vif: (!args.no_vif).then(|| args.vif.clone()),
        disk: Spec::default().disk.filter(|_| disk),
        watched: true,
        ..Spec::default()
    };
    Guest::start(dom0, &spec)
}
