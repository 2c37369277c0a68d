//! Runs this program under valgrind's counter of instructions.

use std::process::Command;

/// How many instructions the program executes with these arguments, while it is in one of these functions. One that is called
/// from another of them is left out.
pub(crate) fn count(arguments: &[&str], functions: &[&str]) -> Result<u64, String> {
    let me = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(functions.iter().map(|function| format!("--toggle-collect={function}")))
        .arg(me)
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot start valgrind (package valgrind): {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected =
        text.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse::<u64>().ok());
    match collected {
        Some(count @ 1..) if output.status.success() => Ok(count),
        _ => Err(format!("valgrind counts nothing for {}:\n{text}", functions.join(", "))),
    }
}
