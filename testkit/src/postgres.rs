//! A PostgreSQL server.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::time::sleep;

use crate::process::{free_port, signal};

/// How long a server may take to start. After a crash it has to read its log again.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a query may take to return what a test waits for.
const LIMIT: Duration = Duration::from_secs(10);

/// A PostgreSQL server on its own port, with its data in a temporary folder. All its processes are killed when this is
/// dropped.
#[derive(Debug)]
pub struct Postgres {
    child: Option<Child>,
    port: u16,
    folder: TempDir,
    options: Vec<String>,
    user: Option<User>,
}

/// PostgreSQL does not run as root, so there it runs as another user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    uid: u32,
    gid: u32,
}

impl Postgres {
    /// Starts a server that has what it acknowledged on the disk.
    pub async fn start() -> Self {
        Self::with(&["fsync=on"]).await
    }

    /// Starts a server that leaves it to the system when to write: quick, and as good against everything but a loss of power.
    pub async fn quick() -> Self {
        Self::with(&["fsync=off"]).await
    }

    /// Starts a server with settings such as `max_connections=5`.
    ///
    /// # Panics
    /// If PostgreSQL is missing or does not start.
    pub async fn with(options: &[&str]) -> Self {
        Self::launch(options.iter().map(ToString::to_string).collect(), false).await
    }

    /// Starts a standby of `primary`, which follows it from its first statement on. `primary` was started a moment ago, so that it
    /// still has all of its log.
    ///
    /// # Panics
    /// If PostgreSQL does not start.
    pub async fn standby_of(primary: &Self) -> Self {
        let conninfo = format!("primary_conninfo=host=127.0.0.1 port={} user=idem", primary.port);
        // A standby takes no fewer connections than `initdb` wrote down.
        Self::launch(vec!["fsync=off".into(), "max_connections=100".into(), conninfo], true).await
    }

    async fn launch(options: Vec<String>, is_standby: bool) -> Self {
        let user = User::to_run_as();
        for _ in 0..10 {
            let folder = tempfile::tempdir().expect("a temporary folder");
            copy_of_template(&folder.path().join("data"), user);
            if is_standby {
                fs::write(folder.path().join("data/standby.signal"), "").expect("a file among its data");
            }
            // The server must reach its data, and put its socket beside it.
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
            if let Some(User { uid, gid }) = user {
                chown(folder.path(), Some(uid), Some(gid)).expect("root changes owners");
            }
            let mut server = Self { child: None, port: free_port(), folder, options: options.clone(), user };
            server.spawn();
            if server.is_ready().await {
                return server;
            }
            // Another process was faster with the port.
        }
        panic!(
            "`postgres` does not start: is there a free port, and room for one more segment of shared memory (`ipcs -m`)?"
        );
    }

    /// The port that the server listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The database as clients name it.
    pub fn url(&self) -> String {
        self.url_through(self.port)
    }

    /// The database as clients name it who reach it through another port of this machine.
    pub fn url_through(&self, port: u16) -> String {
        format!("postgres://idem@127.0.0.1:{port}/postgres?sslmode=disable")
    }

    /// Ends all processes of the server as `kill -9` does, in the middle of whatever they do.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let others = processes_of(child.id());
        let _ = child.kill();
        others.iter().for_each(|&pid| try_signal(pid, "KILL"));
        let _ = child.wait();
        let start = Instant::now();
        // The next server on this data would not start as long as one of them is there.
        while others.iter().any(|&pid| is_alive(pid)) {
            assert!(start.elapsed() < TIMEOUT, "the processes of `postgres` do not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts a killed server again, on the same port and with what is left of its data.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn restart(&mut self) {
        self.kill();
        self.spawn();
        assert!(self.is_ready().await, "`postgres` does not start again on port {}", self.port);
    }

    /// Pauses all processes of the server. Connections stay open, and it does not reply.
    pub fn stall(&self) {
        self.signal_all("STOP");
    }

    /// Resumes a stalled server.
    pub fn resume(&self) {
        self.signal_all("CONT");
    }

    fn signal_all(&self, name: &str) {
        let first = self.child.as_ref().expect("a running server").id();
        signal(first, name);
        processes_of(first).into_iter().for_each(|pid| try_signal(pid, name));
    }

    /// Runs statements as the superuser, with `psql`, and gives back what they return: a line for each row.
    ///
    /// # Panics
    /// If a statement fails.
    pub fn sql(&self, statements: &str) -> String {
        let mut psql = Command::new(binary("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statements]).arg(self.url());
        text(&succeed("psql", &mut psql).stdout)
    }

    /// Waits until a query returns `wanted`.
    ///
    /// # Panics
    /// If it does not within ten seconds, or fails.
    pub async fn wait_until(&self, query: &str, wanted: &str) {
        let start = Instant::now();
        loop {
            let found = self.sql(query);
            if found.trim() == wanted {
                return;
            }
            assert!(
                start.elapsed() < LIMIT,
                "`{query}` still returns `{}`, not `{wanted}`, after {LIMIT:?}",
                found.trim()
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn spawn(&mut self) {
        let mut postgres = as_user(self.user, &binary("postgres"));
        postgres.arg("-D").arg(self.folder.path().join("data")).arg("-k").arg(self.folder.path());
        postgres.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        // What a killed server leaves is among its data.
        let memory = "dynamic_shared_memory_type=mmap";
        for option in ["shared_buffers=16MB", "max_connections=60", "log_min_messages=panic", memory] {
            postgres.args(["-c", option]);
        }
        for option in &self.options {
            postgres.args(["-c", option]);
        }
        postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(postgres.spawn().expect("`postgres` can be started"));
    }

    /// Returns the id of the server's segment of shared memory, from the seventh line of its `postmaster.pid`.
    fn shared_memory(&self) -> Option<String> {
        let said = fs::read_to_string(self.folder.path().join("data/postmaster.pid")).ok()?;
        said.lines().nth(6)?.split_whitespace().nth(1).map(str::to_owned)
    }

    /// Waits until the server says in its own file that it takes connections, or has ended.
    async fn is_ready(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < TIMEOUT {
            let Some(child) = self.child.as_mut() else { return false };
            if !matches!(child.try_wait(), Ok(None)) {
                return false;
            }
            let said = fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap_or_default();
            let mut lines = said.lines();
            // The first line is the process, the eighth its state: what a killed server left behind has another process.
            if lines.next() == Some(&child.id().to_string())
                && lines.nth(6).is_some_and(|state| state.trim() == "ready")
            {
                return true;
            }
            sleep(Duration::from_millis(5)).await;
        }
        false
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        // A server that is killed leaves its segment of shared memory, and a machine has room for some thousands.
        if let Some(id) = self.shared_memory() {
            let _ = Command::new("ipcrm").args(["-m", &id]).stderr(Stdio::null()).status();
        }
    }
}

impl User {
    pub(crate) fn to_run_as() -> Option<Self> {
        if id(&["-u"]) != Some(0) {
            return None;
        }
        let mut users = ["postgres", "nobody"].into_iter();
        let found = users.find_map(|name| Some(Self { uid: id(&["-u", name])?, gid: id(&["-g", name])? }));
        Some(found.expect("a user other than root"))
    }
}

fn id(arguments: &[&str]) -> Option<u32> {
    let said = Command::new("id").args(arguments).output().ok().filter(|said| said.status.success())?;
    text(&said.stdout).trim().parse().ok()
}

pub(crate) fn as_user(user: Option<User>, program: &Path) -> Command {
    let Some(User { uid, gid }) = user else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups").arg(program);
    command.current_dir("/");
    command
}

/// A program of PostgreSQL: in the folder `POSTGRES_BIN`, if that is set, else on the path, or where Debian and Ubuntu have it, in
/// its latest version. A folder with a server may lack `psql`, and any version of it will do.
///
/// # Panics
/// If it is missing.
fn binary(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("POSTGRES_BIN").filter(|_| name != "psql") {
        return Path::new(&folder).join(name);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some((entry.as_ref().ok()?.file_name().to_str()?.parse().ok()?, entry.ok()?.path())))
        .collect();
    versions.sort();
    folders.extend(versions.into_iter().rev().map(|(_, folder)| folder.join("bin")));
    folders.into_iter().map(|folder| folder.join(name)).find(|file| file.is_file()).unwrap_or_else(|| {
        panic!(
            "`{name}` of PostgreSQL is missing, and this test needs a real server. Install it, on Debian and Ubuntu with: \
             apt-get install postgresql"
        )
    })
}

/// Making a cluster takes seconds and copying one does not, so one is kept for all tests of this user. Tests in several
/// processes may make it at the same time; then the first one to be ready wins.
fn copy_of_template(to: &Path, user: Option<User>) {
    let initdb = binary("initdb");
    let version = text(&succeed("initdb", Command::new(&initdb).arg("--version")).stdout);
    // `initdb (PostgreSQL) 15.18 (Debian ..)`
    let version = version.split_whitespace().nth(2).expect("a version").to_owned();
    let uid = user.map_or_else(|| id(&["-u"]).expect("a user"), |user| user.uid);
    let template = std::env::temp_dir().join(format!("idem-testkit-pgdata-{version}-{uid}"));
    if !template.exists() {
        let folder = tempfile::Builder::new().prefix("idem-testkit-").tempdir().expect("a temporary folder");
        if let Some(User { uid, gid }) = user {
            chown(folder.path(), Some(uid), Some(gid)).expect("root changes owners");
        }
        let made = folder.path().join("data");
        let mut initdb = as_user(user, &initdb);
        initdb.args(["-U", "idem", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--wal-segsize=1", "-D"]);
        succeed("initdb", initdb.arg(&made));
        drop_template0(&made, user);
        // Fails if another has won, which is as good.
        let _ = fs::rename(&made, &template);
    }
    let owner = fs::metadata(&template).expect("the template").uid();
    assert_eq!(owner, uid, "{} belongs to another user; remove it", template.display());
    succeed("cp", Command::new("cp").arg("-a").arg(&template).arg(to));
}

/// A third of the files of a new cluster are those of a database that no test needs, and each server gets a copy.
fn drop_template0(data: &Path, user: Option<User>) {
    let mut postgres = as_user(user, &binary("postgres"));
    postgres.args(["--single", "-c", "exit_on_error=on", "-D"]).arg(data).arg("postgres");
    postgres.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = postgres.spawn().expect("`postgres` can be started");
    let statements = b"ALTER DATABASE template0 IS_TEMPLATE false;\nDROP DATABASE template0;\n";
    // A statement ends with its line, and the session with its input.
    let written = child.stdin.take().expect("its input is ours").write_all(statements);
    let ended = child.wait().expect("our own child");
    assert!(written.is_ok() && ended.success(), "`postgres --single` failed: {written:?}, {ended}");
}

fn succeed(name: &str, command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("`{name}`: {error}"));
    assert!(output.status.success(), "`{name}` failed: {}{}", text(&output.stdout), text(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The processes that the first process of a server has started.
fn processes_of(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| stat(pid).is_some_and(|(_, its_parent)| its_parent == parent)).collect()
}

fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// The state of a process, and its parent.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which is in parentheses and may have any character.
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

/// Sends a signal to a process that may have ended by itself.
fn try_signal(pid: u32, name: &str) {
    let _ = Command::new("sh").args(["-c", "kill -\"$0\" \"$1\" 2>/dev/null", name, &pid.to_string()]).status();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_is_killed_and_restarts_with_its_data_on_its_port() {
        let mut server = Postgres::start().await;
        server.sql("CREATE TABLE here (n int)");
        server.sql("INSERT INTO here VALUES (1)");
        server.kill();
        assert!(tokio::net::TcpStream::connect(("127.0.0.1", server.port())).await.is_err());
        server.restart().await;
        assert_eq!(server.sql("SELECT n FROM here").trim(), "1");
    }

    #[tokio::test]
    async fn a_standby_follows_its_primary_until_it_is_promoted() {
        let mut primary = Postgres::quick().await;
        let standby = Postgres::standby_of(&primary).await;
        primary.sql("CREATE TABLE here (n int)");
        standby.wait_until("SELECT count(*) FROM pg_class WHERE relname = 'here'", "1").await;
        assert_eq!(standby.sql("SHOW transaction_read_only").trim(), "on");
        primary.kill();
        standby.sql("SELECT pg_promote()");
        standby.sql("INSERT INTO here VALUES (1)");
    }

    #[tokio::test]
    async fn a_server_leaves_no_shared_memory() {
        let server = Postgres::quick().await;
        let id = server.shared_memory().unwrap();
        let has_segment = || {
            let segments = Command::new("ipcs").arg("-m").output().unwrap();
            text(&segments.stdout).lines().any(|line| line.split_whitespace().nth(1) == Some(&*id))
        };
        assert!(has_segment());
        drop(server);
        assert!(!has_segment());
    }

    #[tokio::test]
    async fn a_stalled_server_replies_when_it_goes_on() {
        let server = Postgres::quick().await;
        server.stall();
        let asked = std::thread::scope(|scope| {
            let asked = scope.spawn(|| server.sql("SELECT 1"));
            server.resume();
            asked.join().expect("it replies")
        });
        assert_eq!(asked.trim(), "1");
    }
}
