//! The subcommand `serve <subject> <row>`: prints its port, and serves until its standard input ends.

use axum::Router;
use axum::routing::get;
use axum::serve::ListenerExt;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::Failure;
use crate::app::{Pace, Shop};
use crate::row::Kind;
use crate::subject::Subject;

/// Serves `subject` in the way that `kind` needs it.
///
/// # Errors
/// If there is no free port.
pub fn run(subject: &Subject, kind: Kind) -> Result<(), Failure> {
    // One worker, since it has one processor.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let subject = *subject;
    // In a task, so that everything runs on the worker, as it does in a service under load.
    runtime.block_on(async move { tokio::spawn(serve(subject, kind)).await? })?;
    runtime.shutdown_background();
    Ok(())
}

async fn serve(subject: Subject, kind: Kind) -> Result<(), Failure> {
    let shop = Shop::new(if kind == Kind::InFlight { Pace::Stuck } else { Pace::Prompt });
    let counted = shop.clone();
    // Beside the subject and not beneath it.
    let count = Router::new().route("/executions", get(async move || counted.executions().to_string()));
    let app = (subject.router)(&shop).merge(count);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?.port());
    let listener = listener.tap_io(|stream| _ = stream.set_nodelay(true));
    let told_to_end = async {
        let mut input = Vec::new();
        let _ = tokio::io::stdin().read_to_end(&mut input).await;
    };
    tokio::select! {
        served = axum::serve(listener, app).into_future() => Ok(served?),
        () = told_to_end => Ok(()),
    }
}
