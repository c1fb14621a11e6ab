//! What the numbers were measured on, for the page.

use std::fs;
use std::process::Command;

/// The machine, the number of rounds, and how the processes of the run are placed.
pub fn described(rounds: usize, placed: &str) -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let sha = if cpus.contains(" sha_ni") { "with" } else { "without" };
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{processors} processors, {}, {sha} SHA instructions; Linux {}; {}. {rounds} rounds; {placed}. \
         {}; load of the machine when it began: {}.",
        model.trim_start_matches([' ', '\t', ':']),
        said("uname", &["-r"]),
        said("rustc", &["--version"]),
        said("date", &["-u", "+%Y-%m-%d"]),
        load.split(' ').next().unwrap_or("unknown"),
    )
}
