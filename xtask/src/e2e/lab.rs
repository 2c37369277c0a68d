//! A dom0 that many tests use one after the other, and what they do with their guests.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};

use crate::dom0::{Dom0, Follow, Options, Store};
use crate::fat;
use crate::guest::{Guest, KERNEL, PATIENCE, Spec};
use crate::image::{self, out_dir};
use crate::platform::Arch;
use crate::web::{self, Site};

/// The test bed with the image and a FAT disk in it.
pub(super) struct Lab {
    pub(super) arch: Arch,
    pub(super) dom0: Dom0,
    test: String,
    /// The site that tests in a row look at, so that not each starts a guest.
    site: Option<(Site, String)>,
}

impl Lab {
    /// Builds the image, makes a disk, boots.
    pub(super) fn new(arch: Arch, store: Store) -> Result<Self> {
        let disk = Some(disk("e2e.img")?);
        let dom0 = Dom0::boot(&Options { arch, store, disk, ..Options::default() })?;
        let lab = Self { arch, dom0, test: String::new(), site: None };
        lab.put(KERNEL, image::Options::default())?;
        Ok(lab)
    }

    /// Builds an image for this bed, and puts it into dom0.
    pub(super) fn put(&self, path: &str, options: image::Options) -> Result<()> {
        self.dom0.put(path, &build(self.arch, options)?)
    }

    /// Runs a test, whose error then has with it what the guest and Xen said.
    pub(super) fn run(&mut self, name: &str, test: &dyn Fn(&mut Self) -> Result<()>) -> Result<()> {
        self.enter(name)?;
        test(self).map_err(|error| self.explain(error))
    }

    /// A test begins. The guest of the tests before it goes, unless this one looks at the same site.
    pub(super) fn enter(&mut self, test: &str) -> Result<()> {
        self.test = test.to_owned();
        if !test.starts_with("web-") {
            self.leave_site()?;
        }
        Ok(())
    }

    fn leave_site(&mut self) -> Result<()> {
        match self.site.take() {
            Some((_, guest)) => self.dom0.run(&format!("xl destroy {guest}"), PATIENCE).map(drop),
            None => Ok(()),
        }
    }

    /// Adds what the guest and Xen said to an error.
    pub(super) fn explain(&mut self, error: Error) -> Error {
        let name = self.site.as_ref().map_or(self.test.as_str(), |(_, guest)| guest);
        let script = format!(
            "echo \"--- its console\"; tail -n 30 /var/log/xen/guest-{name}*.log; echo \"--- xl dmesg\"; xl dmesg | grep -av HVM | tail -n 15; \
             xl list; xenstore-ls /local/domain | grep -E 'state|name' | tail -n 12"
        );
        let said = self.dom0.sh(&script, Duration::from_secs(30));
        // A guest that failed one check is no ground for the next.
        let _ = self.leave_site();
        match said {
            Ok(said) => anyhow::anyhow!("{error:#}\n{}", said.stdout),
            Err(lost) => anyhow::anyhow!("{error:#}\nand then {lost:#}"),
        }
    }

    /// The ordinary guest, under the test's name.
    pub(super) fn spec(&self) -> Spec {
        Spec { name: self.test.clone(), ..Spec::default() }
    }

    /// Starts a guest, and follows its console.
    pub(super) fn start(&self, spec: &Spec) -> Result<(Guest<'_>, Follow)> {
        let guest = Guest::start(&self.dom0, spec)?;
        let console = guest.console()?;
        Ok((guest, console))
    }

    /// The web server behind the forwarded port, once it answers.
    pub(super) fn site(&self) -> Result<Site> {
        let site = Site::new(self.dom0.http_port());
        wait_for_site(&site)?;
        Ok(site)
    }

    /// A web server that stays for the tests that follow.
    pub(super) fn shared_site(&mut self) -> Result<&Site> {
        if self.site.is_none() {
            let guest = Guest::start(&self.dom0, &self.spec())?;
            let name = guest.name().to_owned();
            std::mem::forget(guest);
            self.site = Some((Site::new(self.dom0.http_port()), name));
            wait_for_site(&Site::new(self.dom0.http_port()))?;
        }
        self.site.as_ref().map(|(site, _)| site).context("there is a site")
    }
}

/// Waits for the first answer.
fn wait_for_site(site: &Site) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match site.get("/-/metrics") {
            Ok(answer) if answer.status == 200 => return Ok(()),
            _ if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
            Ok(answer) => bail!("the web server answers {}", answer.status),
            Err(error) => return Err(error.context("the web server does not answer")),
        }
    }
}

/// The bytes of an image, built without words.
pub(super) fn build(arch: Arch, options: image::Options) -> Result<Vec<u8>> {
    let image = image::build(&image::Options { arch, quiet: true, ..options })?;
    fs::read(&image.path).with_context(|| format!("cannot read {}", image.path.display()))
}

/// How the last line of a kernel that prints a line for each check ends, as a terminal gets it.
pub(super) const CHECKED: &str = " failed\r";

/// Whether every check of the kernel `package` passed, as the last line says and the others bear out, which are `least` at
/// least.
pub(super) fn judge_checks(package: &str, least: usize, who: &str, text: &str) -> Result<()> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let starting =
        |word: &str| lines.iter().copied().filter(|line| line.starts_with(word)).collect::<Vec<_>>();
    let failed = starting("FAILED ");
    ensure!(failed.is_empty(), "{who}:\n{}", failed.join("\n"));
    let passed = starting("ok ").len() + starting("refused ").len();
    let total = starting(&format!("{package}: "));
    let total = total.last().with_context(|| format!("{who}: no last line:\n{text}"))?;
    // Of a few checks, something is missing.
    if passed < least || *total != format!("{package}: {passed} passed, 0 failed") {
        bail!("{who} says {total:?} after {passed} lines:\n{text}");
    }
    Ok(())
}

/// A FAT disk with what the checks of the web server expect.
fn disk(name: &str) -> Result<PathBuf> {
    let path = out_dir()?.join(name);
    let contents = web::contents();
    let files: Vec<(&str, &[u8])> = contents.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    fat::image(&path, 64, &files)?;
    Ok(path)
}
