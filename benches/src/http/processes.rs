//! The other two processes: this program again, with a subcommand.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::load::{Job, Report};
use crate::Failure;
use crate::row::Kind;
use crate::subject::Subject;

/// A server over one subject. It ends when this is dropped.
pub(super) struct Server {
    process: Process,
    pub(super) port: u16,
}

impl Server {
    pub(super) fn start(subject: &Subject, kind: Kind) -> Result<Self, Failure> {
        let mut process = Process::start(0, &["serve", subject.name, kind.name()])?;
        let port = process.read_line()?.trim().parse()?;
        Ok(Self { process, port })
    }

    /// The time its threads have spent on a processor.
    pub(super) fn processor_time(&self) -> Result<Duration, Failure> {
        let mut nanos = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.process.child.id()))? {
            let schedstat = fs::read_to_string(thread?.path().join("schedstat"))?;
            nanos += schedstat.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// How often the handler was started, by the server's own count.
    pub(super) fn executions(&self) -> Result<u64, Failure> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.write_all(b"GET /executions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        let (_, count) = response.rsplit_once("\r\n\r\n").ok_or("the server did not count")?;
        Ok(count.parse()?)
    }

    /// Waits until a handler runs.
    pub(super) fn wait_for_execution(&self) -> Result<u64, Failure> {
        for _ in 0..1000 {
            let executions = self.executions()?;
            if executions > 0 {
                return Ok(executions);
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(0)
    }
}

/// The process that makes the load.
pub(super) struct Load {
    process: Process,
}

impl Load {
    pub(super) fn start() -> Result<Self, Failure> {
        Ok(Self { process: Process::start(1, &["load"])? })
    }

    pub(super) fn run(&mut self, job: &Job) -> Result<Report, Failure> {
        self.process.write_line(&serde_json::to_string(job)?)?;
        Ok(serde_json::from_str(&self.process.read_line()?)?)
    }
}

/// A child that is told things by its standard input, and ends with it.
struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts this program with `arguments`, on its own processor if there are two and `taskset` is there.
    fn start(processor: usize, arguments: &[&str]) -> Result<Self, Failure> {
        let program = std::env::current_exe()?;
        let mut command = if can_pin() {
            let mut command = Command::new("taskset");
            command.arg("--cpu-list").arg(processor.to_string()).arg(program);
            command
        } else {
            Command::new(program)
        };
        let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().ok_or("a child without output")?);
        Ok(Self { child, input, output })
    }

    fn write_line(&mut self, line: &str) -> Result<(), Failure> {
        let input = self.input.as_mut().ok_or("a child without input")?;
        writeln!(input, "{line}")?;
        Ok(input.flush()?)
    }

    fn read_line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(format!("the process {} ended: see above", self.child.id()).into());
        }
        Ok(line)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.input.take());
        // It ends by itself when its input does; it is no use to complain that it ended otherwise.
        let _ = self.child.wait();
    }
}

/// Whether server and load are pinned to processors of their own.
pub(crate) fn can_pin() -> bool {
    let two = thread::available_parallelism().is_ok_and(|processors| processors.get() >= 2);
    let works = || Command::new("taskset").args(["--cpu-list", "0,1", "true"]).stderr(Stdio::null()).status();
    two && works().is_ok_and(|status| status.success())
}
