//! A cron job in three processes, of which one does the work each time. Run it:
//!
//! ```console
//! $ cargo run --example cron --features jobs
//! ```
//!
//! Each process wakes every minute, which lasts half a second here, and makes the report of that minute. The first one makes it;
//! the others get its result. They share a file of SQLite.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use idem_axum::{Idempotency, RefusalReason, idempotent};
use idem_sqlx::SqliteStore;

const MINUTE: Duration = Duration::from_millis(500);
const MINUTES: u64 = 4;

#[derive(Clone)]
struct App {
    idempotency: Idempotency,
    process: u32,
}

/// Makes the report of a minute. A process that finds it in the making waits for it.
#[idempotent(engine = app.idempotency, scope = "report", key = minute, in_flight = wait("10s"), ttl = "1d")]
async fn report(app: App, minute: u64) -> Result<u32, RefusalReason> {
    println!("minute {minute}: process {} makes the report", app.process);
    Ok(app.process)
}

/// One of the processes.
async fn work(file: &Path, process: u32) -> Result<(), Box<dyn Error>> {
    let store = SqliteStore::open(file).await?;
    store.migrate().await?;
    let app = App { idempotency: Idempotency::builder(store).namespace("cron").build(), process };
    let first = now()? + 1;
    for minute in first..first + MINUTES {
        while now()? < minute {
            tokio::time::sleep(MINUTE / 20).await;
        }
        let maker = report(app.clone(), minute).await?;
        if maker != process {
            println!("minute {minute}: process {process} finds the report of process {maker}");
        }
    }
    app.idempotency.drain().await;
    Ok(())
}

/// Returns the number of the minute. The date is the key, so it must not depend on when a process started.
fn now() -> Result<u64, Box<dyn Error>> {
    let milliseconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() / MINUTE.as_millis();
    Ok(u64::try_from(milliseconds)?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [file, process] = arguments.as_slice() {
        return work(Path::new(file), process.parse()?).await;
    }
    let folder = std::env::temp_dir().join(format!("idem-cron-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let program = std::env::current_exe()?;
    let start =
        |process: u32| Command::new(&program).arg(folder.join("idempotency.db")).arg(process.to_string()).spawn();
    let processes = (1..=3).map(start).collect::<Result<Vec<_>, _>>()?;
    let mut failed = 0;
    for mut process in processes {
        failed += usize::from(!process.wait()?.success());
    }
    std::fs::remove_dir_all(folder)?;
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of the processes failed").into()) }
}
