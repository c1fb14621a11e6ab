//! A Redis server.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::process::{free_port, signal};
use crate::wait::until;

/// How long a server may take to start.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A Redis server on its own port, with its data in a temporary folder. It is killed when this is dropped.
#[derive(Debug)]
pub struct Redis {
    child: Option<Child>,
    port: u16,
    folder: TempDir,
    options: Vec<String>,
}

impl Redis {
    /// Starts a server that keeps nothing on disk.
    pub async fn start() -> Self {
        Self::with(&["--save", ""]).await
    }

    /// Starts a server that writes every change to disk before it replies.
    pub async fn durable() -> Self {
        Self::with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"]).await
    }

    /// Starts a replica of this server that keeps nothing on disk, and waits until it follows.
    pub async fn replica(&self) -> Self {
        let port = self.port.to_string();
        let replica = Self::with(&["--save", "", "--replicaof", "127.0.0.1", &port]).await;
        // The first acknowledgement may take a second.
        let known = format!("port={},state=online,offset=", replica.port);
        let acknowledged = |info: String| info.split_once(&known).is_some_and(|(_, offset)| !offset.starts_with("0,"));
        until("the replica follows", async || {
            // Something to acknowledge, which leaves nothing behind.
            self.say("PUBLISH following 1").await;
            replica.say("INFO replication").await.contains("master_link_status:up")
                && acknowledged(self.say("INFO replication").await)
        })
        .await;
        replica
    }

    /// Starts a server with the options of a configuration file, written as on the command line.
    ///
    /// # Panics
    /// If `redis-server` is missing or does not start.
    pub async fn with(options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let mut folder = tempfile::tempdir().expect("a temporary folder");
        for _ in 0..10 {
            let port = free_port();
            let child = spawn(port, folder.path(), &options);
            let mut server = Self { child: Some(child), port, folder, options: options.clone() };
            if server.replies().await {
                return server;
            }
            // Another process was faster with the port.
            server.kill();
            folder = std::mem::replace(&mut server.folder, tempfile::tempdir().expect("a temporary folder"));
        }
        panic!("`redis-server` does not start; what it wrote is above");
    }

    /// The port that the server listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server as clients name it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends the server as `kill -9` does, in the middle of whatever it does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a killed server again, on the same port and with what is left of its data.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn restart(&mut self) {
        self.kill();
        self.child = Some(spawn(self.port, self.folder.path(), &self.options));
        assert!(self.replies().await, "`redis-server` does not start again on port {}", self.port);
    }

    /// Pauses the process. Connections stay open, and it does not reply.
    pub fn stall(&self) {
        signal(self.child.as_ref().expect("a running server").id(), "STOP");
    }

    /// Resumes a stalled process.
    pub fn resume(&self) {
        signal(self.child.as_ref().expect("a running server").id(), "CONT");
    }

    /// Sends one command, its words separated by spaces, and gives back what the server says to it, as it is on the wire.
    ///
    /// # Panics
    /// If the server does not reply.
    pub async fn say(&self, command: &str) -> String {
        let said = timeout(TIMEOUT, ask(self.port, command)).await;
        said.ok().and_then(Result::ok).unwrap_or_else(|| panic!("no reply to {command} on port {}", self.port))
    }

    /// Waits until the server replies. `false` if it has ended.
    async fn replies(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < TIMEOUT {
            if !matches!(self.child.as_mut().map(Child::try_wait), Some(Ok(None))) {
                return false;
            }
            // Of two servers on one port this one might be the one that is about to end.
            if let Ok(Ok(said)) = timeout(TIMEOUT, ask(self.port, "INFO server")).await
                && said.contains(&format!("process_id:{}\r\n", self.child.as_ref().map_or(0, Child::id)))
                && ask(self.port, "PING").await.is_ok_and(|said| said.starts_with("+PONG"))
            {
                return true;
            }
            sleep(Duration::from_millis(5)).await;
        }
        panic!("`redis-server` runs on port {}, but does not reply", self.port);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts the program `REDIS_SERVER`, if that is set, else `redis-server`.
fn spawn(port: u16, folder: &Path, options: &[String]) -> Child {
    let program = std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
    let spawned = Command::new(program)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"])
        .arg(folder)
        .args(["--daemonize", "no", "--loglevel", "warning", "--repl-diskless-sync-delay", "0"])
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => panic!(
            "`redis-server` is missing, and this test needs a real one. Install it, on Debian and Ubuntu with: \
             apt-get install redis-server"
        ),
        Err(error) => panic!("`redis-server` could not be started: {error}"),
    }
}

/// Sends one command over its own connection, and QUIT, so that the reply ends with the connection.
async fn ask(port: u16, command: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    connection.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).await?;
    let mut said = Vec::new();
    connection.read_to_end(&mut said).await?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_is_killed_and_restarts_with_its_data_on_its_port() {
        let mut server = Redis::durable().await;
        assert!(server.say("SET here 1").await.starts_with("+OK"));
        server.kill();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).await.is_err());
        server.restart().await;
        assert!(server.say("GET here").await.starts_with("$1\r\n1\r\n"));
    }

    #[tokio::test]
    async fn a_stalled_server_replies_when_it_goes_on() {
        let server = Redis::start().await;
        server.stall();
        let (said, ()) = tokio::join!(server.say("PING"), async {
            tokio::task::yield_now().await;
            server.resume();
        });
        assert!(said.starts_with("+PONG"));
    }
}
