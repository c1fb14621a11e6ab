//! The processes of the service, each ended and stopped by its own id.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use idem_testkit::process::signal;

/// How a process of the service is started.
#[derive(Clone, Debug)]
pub struct Service {
    /// The program.
    pub program: PathBuf,
    /// The store, as its URL.
    pub store: String,
    /// For how long a claim lives without renewal.
    pub lease: Duration,
    /// Where handlers leave their lines.
    pub effects: PathBuf,
}

impl Service {
    /// Starts a process, and waits until it says its port.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(&self) -> Process {
        let mut child = Command::new(&self.program)
            .arg(&self.store)
            .arg(self.lease.as_millis().to_string())
            .arg(&self.effects)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let mut said = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("its output is ours"));
        let read = output.read_line(&mut said);
        let port = said.trim().parse();
        let process = Process { child, port: *port.as_ref().unwrap_or(&0) };
        assert!(read.is_ok() && port.is_ok(), "{} over {} does not start", self.program.display(), self.store);
        process
    }

    /// Where handlers leave their lines.
    pub fn effects(&self) -> &Path {
        &self.effects
    }

    /// Where processes leave what their engines report.
    pub fn trace(&self) -> PathBuf {
        trace_beside(&self.effects)
    }
}

/// The file of the trace, beside the file of effects.
pub fn trace_beside(effects: &Path) -> PathBuf {
    effects.with_extension("trace")
}

/// One process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    port: u16,
}

impl Process {
    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Pauses the process, with all its threads. Connections stay open.
    pub fn stop(&self) {
        signal(self.child.id(), "STOP");
    }

    /// Resumes a stopped process.
    pub fn resume(&self) {
        signal(self.child.id(), "CONT");
    }

    /// Ends the process in the middle of whatever it does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
