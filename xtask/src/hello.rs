//! What examples/hello does, and what is made from it: asked over TCP, as a process or as a guest.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::guest::PATIENCE;

/// What it answers.
const ANSWER: &str = "Hello from Xen.";

/// A process that ends when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It fails only for a process that has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs it as a process, which says on its console that it is `name`, answers, and ends.
pub(crate) fn as_a_process(program: &Path, name: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(["--forward", "0:80"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running =
        Running(command.spawn().with_context(|| format!("cannot start {}", program.display()))?);
    let stderr = BufReader::new(running.0.stderr.take().context("no pipe")?);
    let mut lines = stderr.lines().map_while(Result::ok);
    let port = lines.find_map(|line| line.strip_prefix("127.0.0.1:")?.split(' ').next()?.parse().ok());
    let port = port.context("the process does not say which port leads to it")?;
    is_answered(port).context("the process")?;
    let mut console = String::new();
    running.0.stdout.take().context("no pipe")?.read_to_string(&mut console)?;
    ensure!(console.contains(&format!("I am {name}\n")), "the process says:\n{console}");
    let status = running.0.wait().context("the process is lost")?;
    ensure!(status.success(), "the process ends with {status}");
    Ok(())
}

/// Asks by a port of this machine until there is an answer, and looks at it: who listens may not do so yet.
pub(crate) fn is_answered(port: u16) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match ask(port) {
            Ok(answer) if answer.contains(ANSWER) => return Ok(()),
            Ok(answer) if !answer.is_empty() => bail!("the answer is {answer:?}"),
            _ if Instant::now() < end => std::thread::sleep(Duration::from_millis(100)),
            Ok(_) => bail!("port {port} is closed without an answer"),
            Err(error) => return Err(error.context(format!("port {port} does not answer"))),
        }
    }
}

fn ask(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
