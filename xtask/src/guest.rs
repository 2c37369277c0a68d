//! A guest of the test bed, as xl makes it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::dom0::{Dom0, Follow};

/// How long xl may take for anything, on the slowest bed.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// What xl is told of a guest.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name, which is also that of its console's log.
    pub name: String,
    /// The path of its kernel in dom0.
    pub kernel: String,
    /// Memory in MiB.
    pub memory: u32,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Its command line.
    pub cmdline: String,
    /// Its network card, as in xl's `vif=`.
    pub vif: Option<String>,
    /// Its disk, as in xl's `disk=`.
    pub disk: Option<String>,
    /// More lines of its configuration.
    pub more: String,
    /// Whether a guest that crashed is kept to be looked at, and one that reboots is started again.
    pub watched: bool,
}

/// Where [`Spec::default`] expects the kernel.
pub const KERNEL: &str = "/unikernel";

impl Default for Spec {
    fn default() -> Self {
        Self {
            name: "unikernel".into(),
            kernel: KERNEL.into(),
            memory: 32,
            vcpus: 1,
            cmdline: "ip=10.0.0.2/24 gw=10.0.0.1".into(),
            vif: Some("bridge=xenbr0,mac=00:16:3e:00:00:02".into()),
            disk: Some("phy:/dev/vda,xvda,w".into()),
            more: String::new(),
            watched: false,
        }
    }
}

impl Spec {
    /// The text of xl's configuration file.
    pub fn config(&self) -> String {
        let Self { name, kernel, memory, vcpus, cmdline, vif, disk, more, watched } = self;
        let list = |key: &str, value: &Option<String>| {
            value.as_ref().map_or_else(String::new, |value| format!("{key}=['{value}']\n"))
        };
        let (vif, disk) = (list("vif", vif), list("disk", disk));
        let cmdline = cmdline.replace('\\', "\\\\").replace('"', "\\\"");
        let watched = if *watched { "on_crash='preserve'\n" } else { "" };
        format!(
            "name='{name}'\ntype='pvh'\nkernel='{kernel}'\nmemory={memory}\nvcpus={vcpus}\ntsc_mode='native'\n\
             extra=\"{cmdline}\"\n{vif}{disk}{more}{watched}"
        )
    }
}

/// A guest that was started. Dropping it destroys it.
#[derive(Debug)]
pub struct Guest<'d> {
    dom0: &'d Dom0,
    name: String,
}

impl<'d> Guest<'d> {
    /// Starts a guest.
    pub fn start(dom0: &'d Dom0, spec: &Spec) -> Result<Self> {
        let name = spec.name.clone();
        let config = format!("/{name}.cfg");
        dom0.put(&config, spec.config().as_bytes())?;
        let guest = Self { dom0, name };
        let created = dom0.sh(&format!("xl create {config}"), PATIENCE)?;
        if created.status != 0 {
            bail!("xl cannot start {}, status {}:\n{}", guest.name, created.status, created.stdout);
        }
        Ok(guest)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Follows its console.
    pub fn console(&self) -> Result<Follow> {
        self.dom0.console(&self.name)
    }

    /// Its line of `xl list`: number, memory, vCPUs, state and seconds of CPU. None: there is no such domain.
    pub fn list(&self) -> Result<Option<Listed>> {
        let output = self.dom0.sh(&format!("xl list {}", self.name), PATIENCE)?;
        match output.status {
            0 => {}
            1 => return Ok(None),
            status => bail!("xl list, status {status}:\n{}", output.stdout),
        }
        let line = output.stdout.lines().last().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, id, _, _, state, seconds] => Ok(Some(Listed {
                id: id.parse().with_context(|| format!("xl list: {line}"))?,
                state: state.to_owned(),
                seconds: seconds.parse().with_context(|| format!("xl list: {line}"))?,
            })),
            _ => bail!("xl list: {line}"),
        }
    }

    /// Waits until `wanted` says yes to what `xl list` shows, and returns that.
    pub fn wait(&self, what: &str, wanted: impl Fn(Option<&Listed>) -> bool) -> Result<Option<Listed>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let listed = self.list()?;
            if wanted(listed.as_ref()) {
                return Ok(listed);
            }
            if Instant::now() > end {
                bail!("{} did not {what} within {PATIENCE:?}; xl list says {listed:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends it at once, as pulling the plug does.
    pub fn destroy(self) -> Result<()> {
        self.dom0.run(&format!("xl destroy {}", self.name), PATIENCE).map(drop)
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        // It may be gone already. The backends let go of the disk and the card before the next guest wants them.
        let _ = self.dom0.sh(&format!("xl destroy {} 2>/dev/null; true", self.name), PATIENCE);
    }
}

/// What `xl list` says of a domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Its number.
    pub id: u32,
    /// Letters for running, blocked, paused, shut down, crashed, dying.
    pub state: String,
    /// Seconds of CPU used so far.
    pub seconds: f64,
}

impl Listed {
    /// Whether it has crashed.
    pub fn crashed(&self) -> bool {
        self.state.contains('c')
    }

    /// Whether it has ended, by itself or by a crash.
    pub fn ended(&self) -> bool {
        self.crashed() || self.state.contains('s')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_says_what_the_guest_has_and_no_more() {
        let all = Spec::default().config();
        assert!(all.contains("vif=['bridge=xenbr0,") && all.contains("disk=['phy:/dev/vda,xvda,w']"));
        assert!(!all.contains("on_crash"));
        let spec =
            Spec { vif: None, disk: None, watched: true, cmdline: "a=\"b\"".into(), ..Spec::default() };
        let none = spec.config();
        assert!(!none.contains("vif") && !none.contains("disk") && none.contains("on_crash='preserve'"));
        assert!(none.contains("extra=\"a=\\\"b\\\"\""));
    }
}
