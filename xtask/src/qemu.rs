//! Starts and stops QEMU with Xen and dom0 in it.

use crate::deb::{self, Bed};
use crate::platform::{Boot, Dom0less, Emulator, Platform};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A TCP port of this machine that leads to one inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The port on 127.0.0.1 here.
    pub host: u16,
    /// The address inside, in 10.0.0.0/24.
    pub address: Ipv4Addr,
    /// The port inside.
    pub port: u16,
}

/// What is given to QEMU.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Memory of the whole machine, in MiB, if the platform's own choice does not do.
    pub memory: Option<u32>,
    /// Memory of dom0, in MiB.
    pub dom0_memory: Option<u32>,
    /// What runs as dom0.
    pub system: System,
    /// A raw disk image that dom0 sees as `/dev/vda`.
    pub disk: Option<PathBuf>,
    /// Ports that lead inside.
    pub forwards: Vec<Forward>,
    /// Whether the serial line is copied to this process's standard error.
    pub echo: bool,
}

/// What runs as dom0.
#[derive(Debug, Clone)]
pub enum System {
    /// Linux, with the bed's programs.
    Linux {
        /// The initramfs's name in the bed's folder.
        initramfs: String,
        /// More words for the kernel.
        options: String,
    },
    /// Another kernel.
    Other {
        /// Its name in the bed's folder.
        kernel: String,
        /// Its command line.
        cmdline: String,
        /// How many vCPUs it has.
        vcpus: u32,
    },
    /// None: a kernel is the only domain, without a dom0's rights.
    Dom0less {
        /// Its name in the bed's folder.
        kernel: String,
        /// Its command line.
        cmdline: String,
    },
}

/// Everything the serial line and QEMU itself printed.
#[derive(Debug, Default)]
struct Log {
    text: Mutex<Text>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    ended: bool,
}

impl Log {
    fn text(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running QEMU. Dropping it ends QEMU.
#[derive(Debug)]
pub struct Qemu {
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
    log: Arc<Log>,
}

impl Qemu {
    /// Starts a machine.
    pub fn start(bed: &Bed, machine: &Machine) -> Result<Qemu> {
        let mut command = command(bed, machine)?;
        let log = Arc::new(Log::default());
        let (stop, stopped) = channel();
        let (report, started) = channel();
        let (shared, echo) = (Arc::clone(&log), machine.echo);
        // QEMU dies with the thread that started it (see `command`), so that thread waits for QEMU's end.
        let keeper = thread::spawn(move || match command.spawn() {
            Ok(child) => {
                let _ = report.send(Ok(()));
                keep(child, &stopped, &shared, echo);
            }
            Err(error) => {
                let _ = report.send(Err(error));
            }
        });
        started.recv().context("the thread that starts QEMU ended")?.context("cannot start QEMU")?;
        Ok(Qemu { stop: Some(stop), keeper: Some(keeper), log })
    }

    /// All that the serial line printed so far: Xen's messages and dom0's.
    pub fn serial(&self) -> String {
        String::from_utf8_lossy(&self.log.text().bytes).into_owned()
    }

    /// Whether QEMU has ended.
    pub fn ended(&self) -> bool {
        self.log.text().ended
    }

    /// Waits for the first of `words` on the serial line, and returns its position in `words`.
    pub fn wait_for(&self, words: &[&str], timeout: Duration) -> Result<usize> {
        let end = Instant::now() + timeout;
        let mut text = self.log.text();
        loop {
            let found = String::from_utf8_lossy(&text.bytes);
            if let Some(position) = words.iter().position(|word| found.contains(word)) {
                return Ok(position);
            }
            let now = Instant::now();
            if text.ended {
                bail!("QEMU ended. Its last lines:\n{}", last_lines(&found));
            }
            if now >= end {
                bail!(
                    "nothing after {} s. The serial line's last lines:\n{}",
                    timeout.as_secs(),
                    last_lines(&found)
                );
            }
            text = self
                .log
                .grown
                .wait_timeout(text, end - now)
                .map_or_else(|e| e.into_inner().0, |(text, _)| text);
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(keeper) = self.keeper.take() {
            // A keeper that panicked has nothing left to end.
            let _ = keeper.join();
        }
    }
}

/// The last lines of a log, for an error message.
pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(25)..).unwrap_or_default().join("\n")
}

/// Waits until QEMU ends by itself or `stopped` loses its sender.
fn keep(mut child: Child, stopped: &Receiver<()>, log: &Arc<Log>, echo: bool) {
    let output = child.stdout.take().map(|pipe| copy(pipe, log, echo));
    let errors = child.stderr.take().map(|pipe| copy(pipe, log, echo));
    let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
    while !ended(&mut child) {
        match stopped.recv_timeout(Duration::from_millis(50)) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                // It fails only for a process that has ended already.
                let _ = child.kill();
                let _ = child.wait();
                break;
            }
        }
    }
    for reader in [output, errors].into_iter().flatten() {
        let _ = reader.join();
    }
    log.text().ended = true;
    log.grown.notify_all();
}

fn copy(mut pipe: impl Read + Send + 'static, log: &Arc<Log>, echo: bool) -> JoinHandle<()> {
    let log = Arc::clone(log);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            let bytes = buffer.get(..length).unwrap_or_default();
            if echo {
                // Without a standard error there is nobody to tell.
                let _ = std::io::stderr().write_all(bytes);
            }
            log.text().bytes.extend_from_slice(bytes);
            log.grown.notify_all();
        }
    })
}

/// A TCP port of this machine that nobody listens on now.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot find a free TCP port")?;
    Ok(listener.local_addr().context("cannot find a free TCP port")?.port())
}

/// A comma ends a QEMU option's value unless it is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn command(bed: &Bed, machine: &Machine) -> Result<Command> {
    let Platform { emulator, boot, .. } = bed.platform;
    let qemu = deb::ensure_qemu(emulator)?;
    // Without it QEMU would outlive a test that is killed. It costs nothing to go on without it.
    let mut command = match deb::which("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(&qemu);
            command
        }
        None => Command::new(&qemu),
    };
    // Short names: a space or a comma in a folder's name would split QEMU's list of modules.
    command.current_dir(&bed.dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.args(["-accel", "tcg,thread=multi"]).args(emulator.args);
    command.args(["-m", &machine.memory.unwrap_or(emulator.memory).to_string()]);
    command.args(["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-nodefaults"]);
    let xen = xen_options(machine, emulator, boot);
    command.args(["-kernel", Platform::XEN, "-append", &xen]);
    command.args(match &machine.system {
        System::Linux { initramfs, options } => {
            (boot.modules)(Platform::KERNEL, &format!("{LINUX_OPTIONS} {options}"), Some(initramfs))
        }
        System::Other { kernel, cmdline, .. } => (boot.modules)(kernel, cmdline, None),
        System::Dom0less { kernel, cmdline } => {
            let words = boot.dom0less;
            let words =
                words.with_context(|| format!("Xen for {} cannot do without a dom0", bed.platform.name))?;
            words(&Dom0less { dir: &bed.dir, qemu: &qemu, kernel, cmdline, xen: &xen })?
        }
    });

    let mut network = "user,id=n0,net=10.0.0.0/24,host=10.0.0.254,dhcpstart=10.0.0.100".to_owned();
    for forward in &machine.forwards {
        network += &format!(",hostfwd=tcp:127.0.0.1:{}-{}:{}", forward.host, forward.address, forward.port);
    }
    command.args(["-netdev", &network, "-device", "virtio-net-pci,netdev=n0,romfile="]);
    if let Some(disk) = &machine.disk {
        let disk = disk.canonicalize().with_context(|| format!("cannot open the disk {}", disk.display()))?;
        command.args(["-drive", &format!("file={},if=none,id=d0,format=raw", escaped(&disk))]);
        command.args(["-device", "virtio-blk-pci,drive=d0"]);
    }
    Ok(command)
}

/// What dom0's Linux is told: nothing that takes time and finds nothing here.
const LINUX_OPTIONS: &str =
    "console=hvc0 panic=-1 mitigations=off quiet rodata=off cryptomgr.notests audit=0";

fn xen_options(machine: &Machine, emulator: &Emulator, boot: &Boot) -> String {
    let memory = machine.dom0_memory.unwrap_or(emulator.dom0_memory);
    let (vcpus, more) = match machine.system {
        System::Linux { .. } | System::Dom0less { .. } => (1, ""),
        System::Other { vcpus, .. } => (vcpus, boot.other_options),
    };
    format!(
        "{} loglvl=warning guest_loglvl=all dom0_mem={memory}M,max:{memory}M dom0_max_vcpus={vcpus} sched=credit \
         bootscrub=0 {more}",
        boot.options
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Arch;

    #[test]
    fn commas_in_a_disk_are_doubled() {
        assert_eq!(escaped(Path::new("/a,b")), "/a,,b");
    }

    #[test]
    fn memory_is_the_platforms_choice_unless_somebody_has_one() {
        let system = System::Other { kernel: "k".into(), cmdline: String::new(), vcpus: 3 };
        let mut machine = Machine {
            memory: None,
            dom0_memory: None,
            system,
            disk: None,
            forwards: Vec::new(),
            echo: false,
        };
        let options = |machine: &Machine, arch: Arch| {
            let Platform { emulator, boot, .. } = arch.platform();
            xen_options(machine, emulator, boot)
        };
        let text = options(&machine, Arch::Arm64);
        assert!(
            text.contains("dom0_mem=384M,max:384M dom0_max_vcpus=3") && !text.contains("dom0=pvh"),
            "{text}"
        );
        assert!(options(&machine, Arch::X86_64).contains("dom0=pvh"));
        machine.dom0_memory = Some(64);
        machine.system = System::Linux { initramfs: "i".into(), options: String::new() };
        let text = options(&machine, Arch::X86_64);
        assert!(
            text.contains("dom0_mem=64M,max:64M dom0_max_vcpus=1") && !text.contains("dom0=pvh"),
            "{text}"
        );
    }

    #[test]
    fn only_the_last_lines_are_shown() {
        let text: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert!(last_lines(&text).starts_with("75\n") && last_lines(&text).ends_with("\n99"));
        assert_eq!(last_lines("one"), "one");
    }
}
