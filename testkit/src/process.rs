//! What all servers share: free ports, and processes that are ended by their own id.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// Servers listen below the ports that the system hands out to clients: a port that is free now is then not taken while
/// its server is down for a restart.
const FIRST: u16 = 20_000;
const PORTS: u16 = 12_000;

/// A port on which nothing listens. Another process may take it before a server does; the server then does not start.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let random = RandomState::new().build_hasher().finish().to_le_bytes();
    NEXT.fetch_add(u16::from_le_bytes([random[0], random[1]]) % PORTS + 1, Ordering::Relaxed);
    loop {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Sends a signal to one process.
///
/// # Panics
/// If there is no such process.
pub fn signal(pid: u32, name: &str) {
    // The shell's own, since not every machine has a program of this name.
    let sent =
        Command::new("sh").args(["-c", "kill -\"$0\" \"$1\"", name, &pid.to_string()]).stdin(Stdio::null()).status();
    assert!(sent.is_ok_and(|status| status.success()), "signal {name} could not be sent to process {pid}");
}
