//! PgBouncer, a proxy that lends the connections of a PostgreSQL server.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::time::sleep;

use crate::postgres::{Postgres, User, as_user};
use crate::process::free_port;

/// How long it may take to start.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A PgBouncer on its own port, which is killed when this is dropped.
#[derive(Debug)]
pub struct PgBouncer {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl PgBouncer {
    /// Starts one in front of a server, with settings such as `pool_mode = session`.
    ///
    /// # Panics
    /// If PgBouncer is missing or does not start.
    pub async fn before(server: &Postgres, settings: &[&str]) -> Self {
        for _ in 0..10 {
            if let Some(started) = Self::start(server, settings).await {
                return started;
            }
            // Another process was faster with the port.
        }
        panic!("`pgbouncer` does not start");
    }

    async fn start(server: &Postgres, settings: &[&str]) -> Option<Self> {
        let (folder, port) = (tempfile::tempdir().expect("a temporary folder"), free_port());
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        let file = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} user=idem\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\n{}\n",
            server.port(),
            settings.join("\n")
        );
        fs::write(&file, text).expect("a file for the settings");
        let mut pgbouncer = as_user(User::to_run_as(), &program());
        pgbouncer.arg("--quiet").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = pgbouncer.spawn().expect("`pgbouncer` can be started");
        let start = Instant::now();
        while start.elapsed() < TIMEOUT && matches!(child.try_wait(), Ok(None)) {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Some(Self { child, port, _folder: folder });
            }
            sleep(Duration::from_millis(5)).await;
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    /// The database as clients name it.
    pub fn url(&self) -> String {
        format!("postgres://idem@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    /// Returns the settings for each kind of pooling with which a store works: by session, and by transaction if this version can.
    pub fn poolings() -> Vec<Vec<&'static str>> {
        const ALL: [&str; 2] = ["ignore_startup_parameters = options, extra_float_digits", "default_pool_size = 50"];
        let mut poolings = vec![[&ALL[..], &["pool_mode = session"]].concat()];
        if Self::keeps_prepared_statements() {
            poolings.push([&ALL[..], &["pool_mode = transaction", "max_prepared_statements = 100"]].concat());
        }
        poolings
    }

    /// Returns whether this version can keep prepared statements with transaction pooling: since 1.21.
    pub fn keeps_prepared_statements() -> bool {
        let said = Command::new(program()).arg("--version").output().expect("`pgbouncer` says its version").stdout;
        // `PgBouncer 1.18.0`, and then its libraries.
        let said = String::from_utf8_lossy(&said).into_owned();
        let version = said.split_whitespace().nth(1).unwrap_or_default();
        let mut numbers = version.split('.').filter_map(|number| number.parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(1), Some(21))
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program `PGBOUNCER`, if that is set, else the installed one.
///
/// # Panics
/// If it is missing.
fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("PGBOUNCER") {
        return program.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where Debian and Ubuntu have it, which is not on every user's path.
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join("pgbouncer")).find(|file| Path::is_file(file));
    found.unwrap_or_else(|| {
        panic!(
            "`pgbouncer` is missing, and this test needs a real one. Install it, on Debian and Ubuntu with: apt-get install \
             pgbouncer"
        )
    })
}
