//! A service whose handlers write a row and then do what the path says, over either database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::StringRejection;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::{FutureExt, StreamExt};
use http_body_util::BodyExt;
use idem_axum::{Idempotency, IdempotencyKey, IdempotencyLayer, Policy, Refusal, Unrecorded, idempotent};
use idem_sqlx::{PostgresStore, SqliteStore, Tx};
use idem_testkit::postgres::Postgres as Server;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{Connection, PgPool, Pool, Postgres, Sqlite, SqlitePool};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// A refusal whose body comes later.
fn unready(refusal: &Refusal) -> Response {
    let text = futures_util::stream::once(async {
        tokio::task::yield_now().await;
        Ok::<_, std::convert::Infallible>("refused")
    });
    (refusal.status(), Body::from_stream(text)).into_response()
}

/// What the handlers share with the test.
pub(crate) struct App<D: sqlx::Database> {
    pub(crate) pool: Pool<D>,
    pub(crate) runs: Arc<AtomicUsize>,
    /// Whether the last body that was read was whole.
    pub(crate) is_whole: Arc<AtomicBool>,
    /// A permit for each handler that has written its row and waits.
    pub(crate) written: Arc<Semaphore>,
    /// A permit lets one of them go on.
    pub(crate) go_on: Arc<Semaphore>,
}

impl<D: sqlx::Database> Clone for App<D> {
    fn clone(&self) -> Self {
        let Self { pool, runs, is_whole, written, go_on } = self;
        let (runs, is_whole) = (Arc::clone(runs), Arc::clone(is_whole));
        Self { pool: pool.clone(), runs, is_whole, written: Arc::clone(written), go_on: Arc::clone(go_on) }
    }
}

impl<D: sqlx::Database> App<D> {
    fn new(pool: Pool<D>) -> Self {
        let closed = || Arc::new(Semaphore::new(0));
        Self { pool, runs: Arc::default(), is_whole: Arc::default(), written: closed(), go_on: closed() }
    }

    pub(crate) fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    /// Waits until a handler has written its row and waits.
    pub(crate) async fn written(&self) {
        self.written.acquire().await.unwrap().forget();
    }
}

/// Panics when it is dropped.
struct Brittle;

impl Drop for Brittle {
    fn drop(&mut self) {
        panic!("as asked")
    }
}

const WRITE: &str = "INSERT INTO effects (run) VALUES (1)";

macro_rules! endpoints {
    ($name:ident, $database:ty) => {
        pub(crate) mod $name {
            use super::*;

            pub(crate) async fn write(tx: &mut Tx<$database>) {
                sqlx::raw_sql(WRITE).execute(&mut **tx).await.unwrap();
            }

            async fn act_on(app: App<$database>, tx: &mut Tx<$database>, what: &str) -> Response {
                let run = app.runs.fetch_add(1, Ordering::SeqCst) + 1;
                if !what.starts_with("blank") {
                    write(tx).await;
                }
                let text = format!("run {run}");
                let mut words = what.split('-').peekable();
                while let Some(word) = words.next() {
                    match word {
                        "blank" => {}
                        "panic" => panic!("as asked"),
                        "sleep" => tokio::time::sleep(Duration::from_secs(600)).await,
                        "wait" => {
                            app.written.add_permits(1);
                            app.go_on.acquire().await.unwrap().forget();
                        }
                        "nested" => {
                            let mut kept = tx.begin().await.unwrap();
                            sqlx::raw_sql(WRITE).execute(&mut *kept).await.unwrap();
                            kept.commit().await.unwrap();
                            let mut undone = tx.begin().await.unwrap();
                            sqlx::raw_sql(WRITE).execute(&mut *undone).await.unwrap();
                            undone.rollback().await.unwrap();
                            let mut dropped = tx.begin().await.unwrap();
                            sqlx::raw_sql(WRITE).execute(&mut *dropped).await.unwrap();
                        }
                        // sqlx then rolls the whole transaction back, in PostgreSQL.
                        "cancel" => {
                            // So that the next one waits.
                            drop(sqlx::raw_sql("SELECT pg_sleep(0.1)").execute(&mut **tx).now_or_never());
                            assert!(tx.begin().now_or_never().is_none());
                        }
                        "commit" => drop(sqlx::raw_sql("COMMIT").execute(&mut **tx).await.unwrap()),
                        "rollback" => drop(sqlx::raw_sql("ROLLBACK").execute(&mut **tx).await.unwrap()),
                        "prepare" => drop(sqlx::raw_sql("PREPARE TRANSACTION 'a'").execute(&mut **tx).await.unwrap()),
                        "begin" => drop(sqlx::raw_sql("BEGIN; SAVEPOINT idem").execute(&mut **tx).await.unwrap()),
                        "write" => write(tx).await,
                        "failing" => drop(sqlx::raw_sql("SELECT * FROM nothing").execute(&mut **tx).await.unwrap_err()),
                        "slow" => drop(sqlx::raw_sql("SELECT pg_sleep(30)").execute(&mut **tx).await),
                        "busy" => drop(sqlx::raw_sql("SELECT pg_sleep(2)").execute(&mut **tx).await.unwrap()),
                        "chatty" => {
                            for _ in 0..50 {
                                sqlx::raw_sql("SELECT 1").execute(&mut **tx).await.unwrap();
                                tokio::time::sleep(Duration::from_millis(50)).await;
                            }
                        }
                        "hasty" => {
                            let query = sqlx::raw_sql("SELECT pg_sleep(600)").execute(&mut **tx);
                            assert!(tokio::time::timeout(Duration::from_millis(50), query).await.is_err());
                        }
                        // As above, and the statement fails.
                        "fickle" => {
                            let query = sqlx::raw_sql("SELECT pg_sleep(0.2); SELECT 1 / 0").execute(&mut **tx);
                            assert!(query.now_or_never().is_none());
                        }
                        "guest" => drop(sqlx::raw_sql("SET LOCAL ROLE guest").execute(&mut **tx).await.unwrap()),
                        "pool" => drop(sqlx::raw_sql("SELECT 1").execute(&app.pool).await.unwrap()),
                        "large" => return (StatusCode::CREATED, "x".repeat(2 << 20)).into_response(),
                        "unrecorded" => return (Unrecorded, text).into_response(),
                        // The refusal of another call, passed on.
                        "refused" => {
                            let (mut parts, ()) = Request::new(()).into_parts();
                            let key = IdempotencyKey::from_request_parts(&mut parts, &()).await;
                            let mut refused = key.unwrap_err().into_response();
                            *refused.status_mut() = StatusCode::ACCEPTED;
                            return refused;
                        }
                        "frames" => {
                            let chunks = (0..200).map(|_| Ok::<_, std::io::Error>("x".repeat(1024)));
                            return Body::from_stream(futures_util::stream::iter(chunks)).into_response();
                        }
                        "broken" => {
                            let chunks = [Ok("half"), Err(std::io::Error::other("as asked"))];
                            return Body::from_stream(futures_util::stream::iter(chunks)).into_response();
                        }
                        // Its whole text, and then a panic, of which only the third poll learns.
                        "mined" => {
                            let mut polled = 0;
                            let chunks = futures_util::stream::poll_fn(move |_| {
                                polled += 1;
                                match polled {
                                    1 => Poll::Ready(Some(Ok::<_, std::io::Error>("whole"))),
                                    2 => Poll::Pending,
                                    _ => panic!("as asked"),
                                }
                            });
                            return ([("content-length", "5")], Body::from_stream(chunks)).into_response();
                        }
                        // Its length is known until its data has been read, and its trailers come later.
                        "late" => {
                            let trailers = async {
                                for _ in 0..3 {
                                    tokio::task::yield_now().await;
                                }
                                Some(Ok::<_, std::convert::Infallible>(axum::http::HeaderMap::new()))
                            };
                            let body = http_body_util::Full::new(Bytes::from("whole")).with_trailers(trailers);
                            return Body::new(body).into_response();
                        }
                        "stalls" => {
                            let brittle = Brittle;
                            let first = futures_util::stream::iter(["half"]).chain(futures_util::stream::pending());
                            let chunks = first.map(move |chunk| {
                                let _ = &brittle;
                                Ok::<_, std::io::Error>(chunk)
                            });
                            return Body::from_stream(chunks).into_response();
                        }
                        "brittle" => {
                            let brittle = Brittle;
                            let chunks = futures_util::stream::iter(["whole"]).map(move |chunk| {
                                let _ = &brittle;
                                Ok::<_, std::io::Error>(chunk)
                            });
                            return Body::from_stream(chunks).into_response();
                        }
                        status => {
                            let status = StatusCode::from_u16(status.parse().unwrap()).unwrap();
                            return (status, text).into_response();
                        }
                    }
                }
                panic!("{what:?} has no end");
            }

            #[idempotent]
            pub(crate) async fn act(
                State(app): State<App<$database>>,
                mut tx: Tx<$database>,
                Path(what): Path<String>,
            ) -> Response {
                act_on(app, &mut tx, &what).await
            }

            #[idempotent(timeout = "1s")]
            pub(crate) async fn limited(
                State(app): State<App<$database>>,
                mut tx: Tx<$database>,
                Path(what): Path<String>,
            ) -> Response {
                act_on(app, &mut tx, &what).await
            }

            #[idempotent(record = all)]
            pub(crate) async fn record_all(
                State(app): State<App<$database>>,
                mut tx: Tx<$database>,
                Path(what): Path<String>,
            ) -> Response {
                act_on(app, &mut tx, &what).await
            }

            /// Stripe keeps server errors.
            #[idempotent(policy = Policy::STRIPE)]
            pub(crate) async fn stripe(
                State(app): State<App<$database>>,
                mut tx: Tx<$database>,
                Path(what): Path<String>,
            ) -> Response {
                act_on(app, &mut tx, &what).await
            }

            #[idempotent(errors = unready)]
            pub(crate) async fn refuses_later(
                State(app): State<App<$database>>,
                mut tx: Tx<$database>,
                Path(what): Path<String>,
            ) -> Response {
                act_on(app, &mut tx, &what).await
            }

            #[idempotent(record = client_error)]
            pub(crate) async fn record_errors(
                State(app): State<App<$database>>,
                mut tx: Tx<$database>,
                Path(what): Path<String>,
            ) -> Response {
                act_on(app, &mut tx, &what).await
            }

            #[idempotent(in_flight = wait("30s"))]
            pub(crate) async fn waits(
                State(app): State<App<$database>>,
                Path(what): Path<String>,
                mut tx: Tx<$database>,
            ) -> Response {
                act_on(app, &mut tx, &what).await
            }

            /// As its last argument, which may take the body.
            #[idempotent(abandoned = rerun)]
            pub(crate) async fn reruns(
                State(app): State<App<$database>>,
                Path(what): Path<String>,
                mut tx: Tx<$database>,
            ) -> Response {
                act_on(app, &mut tx, &what).await
            }

            #[idempotent(shadow, scope = global)]
            pub(crate) async fn shadowed(
                State(app): State<App<$database>>,
                Path(what): Path<String>,
                mut tx: Tx<$database>,
            ) -> Response {
                act_on(app, &mut tx, &what).await
            }

            #[idempotent]
            pub(crate) async fn leaks(State(app): State<App<$database>>, mut tx: Tx<$database>) -> StatusCode {
                write(&mut tx).await;
                tokio::spawn(async move {
                    app.written.add_permits(1);
                    app.go_on.acquire().await.unwrap().forget();
                    drop(tx);
                    app.written.add_permits(1);
                });
                StatusCode::CREATED
            }

            #[idempotent(fingerprint = path)]
            pub(crate) async fn reads(
                State(app): State<App<$database>>,
                mut tx: Tx<$database>,
                Path(what): Path<String>,
                body: Result<String, StringRejection>,
            ) -> Response {
                app.is_whole.store(body.is_ok(), Ordering::SeqCst);
                act_on(app, &mut tx, &what).await
            }

            #[idempotent]
            pub(crate) async fn two(_one: Tx<$database>, _two: Tx<$database>) {}

            pub(crate) async fn plain(_tx: Tx<$database>) {}

            /// Without a transaction, on the same store.
            #[idempotent(scope = global)]
            pub(crate) async fn leased(State(app): State<App<$database>>) -> &'static str {
                app.runs.fetch_add(1, Ordering::SeqCst);
                "leased"
            }

            #[idempotent(scope = global)]
            pub(crate) async fn global(State(app): State<App<$database>>, mut tx: Tx<$database>) -> Response {
                act_on(app, &mut tx, "wait-201").await
            }

            /// The same endpoint after a release that changed its rules.
            #[idempotent(scope = global)]
            pub(crate) async fn released(
                State(app): State<App<$database>>,
                mut tx: Tx<$database>,
                Path(what): Path<String>,
            ) -> Response {
                act_on(app, &mut tx, &what).await
            }

            /// The service after that release.
            pub(crate) fn next_router(app: &App<$database>, idempotency: Idempotency) -> Router {
                Router::new()
                    .route("/act/{what}", post(released))
                    .layer(IdempotencyLayer::new(idempotency))
                    .with_state(app.clone())
            }

            pub(crate) fn router(app: &App<$database>, idempotency: Idempotency) -> Router {
                Router::new()
                    .route("/act/{what}", post(act))
                    .route("/limited/{what}", post(limited))
                    .route("/all/{what}", post(record_all))
                    .route("/stripe/{what}", post(stripe))
                    .route("/later/{what}", post(refuses_later))
                    .route("/errors/{what}", post(record_errors))
                    .route("/waits/{what}", post(waits))
                    .route("/reruns/{what}", post(reruns))
                    .route("/shadowed/{what}", post(shadowed))
                    .route("/leaks", post(leaks))
                    .route("/reads/{what}", post(reads))
                    .route("/two", post(two))
                    .route("/plain", post(plain))
                    .route("/leased", post(leased))
                    .route("/global", post(global))
                    .layer(IdempotencyLayer::new(idempotency))
                    .with_state(app.clone())
            }
        }
    };
}

/// Runs a check of a shop over either database.
macro_rules! over_both {
    ($($name:ident),*) => {$(
        mod $name {
            #[tokio::test]
            async fn over_postgres() {
                super::$name(crate::shop::Shop::postgres(4).await).await;
            }

            #[tokio::test]
            async fn over_sqlite() {
                super::$name(crate::shop::Shop::sqlite(4).await).await;
            }
        }
    )*};
}
pub(crate) use over_both;

endpoints!(over_postgres, Postgres);
endpoints!(over_sqlite, Sqlite);

/// A service and its database.
pub(crate) struct Shop<D: sqlx::Database, K> {
    pub(crate) app: App<D>,
    pub(crate) idempotency: Idempotency,
    pub(crate) router: Router,
    /// The server, or the folder of the file.
    pub(crate) keeper: K,
}

impl Shop<Postgres, Server> {
    pub(crate) async fn postgres(connections: u32) -> Self {
        Self::over(Server::quick().await, connections).await
    }

    pub(crate) async fn over(server: Server, connections: u32) -> Self {
        let pool = PgPoolOptions::new().max_connections(connections).connect(&server.url()).await.unwrap();
        sqlx::raw_sql("CREATE TABLE effects (run bigint)").execute(&pool).await.unwrap();
        PostgresStore::from_pool(pool.clone()).migrate().await.unwrap();
        let (app, idempotency, router) = postgres_service(pool);
        Self { app, idempotency, router, keeper: server }
    }
}

/// How many rows of handlers are committed.
pub(crate) trait Effects {
    async fn effects(&self) -> usize;
}

impl Effects for Shop<Postgres, Server> {
    async fn effects(&self) -> usize {
        self.keeper.sql("SELECT count(*) FROM effects").trim().parse().unwrap()
    }
}

impl Effects for Shop<Sqlite, TempDir> {
    async fn effects(&self) -> usize {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM effects").fetch_one(&self.app.pool).await.unwrap();
        usize::try_from(count).unwrap()
    }
}

/// A service over a database that is ready, as another process would run it.
pub(crate) fn postgres_service(pool: PgPool) -> (App<Postgres>, Idempotency, Router) {
    let app = App::new(pool.clone());
    let idempotency = Idempotency::builder(PostgresStore::from_pool(pool)).namespace("shop").build();
    let router = over_postgres::router(&app, idempotency.clone());
    (app, idempotency, router)
}

impl Shop<Sqlite, TempDir> {
    pub(crate) async fn sqlite(connections: u32) -> Self {
        Self::sqlite_with(connections, |options| options).await
    }

    pub(crate) async fn sqlite_with(
        connections: u32,
        change: impl FnOnce(SqliteConnectOptions) -> SqliteConnectOptions,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(folder.path().join("shop.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(Duration::from_millis(300));
        let pool = SqlitePoolOptions::new().max_connections(connections).connect_with(change(options)).await.unwrap();
        sqlx::raw_sql("CREATE TABLE effects (run INTEGER)").execute(&pool).await.unwrap();
        SqliteStore::from_pool(pool.clone()).migrate().await.unwrap();
        let (app, idempotency, router) = sqlite_service(pool);
        Self { app, idempotency, router, keeper: folder }
    }
}

/// As [`postgres_service`].
pub(crate) fn sqlite_service(pool: SqlitePool) -> (App<Sqlite>, Idempotency, Router) {
    let app = App::new(pool.clone());
    let idempotency = Idempotency::builder(SqliteStore::from_pool(pool)).namespace("shop").build();
    let router = over_sqlite::router(&app, idempotency.clone());
    (app, idempotency, router)
}

impl<D: sqlx::Database, K> Shop<D, K> {
    pub(crate) async fn send(&self, path: &str, key: impl Into<Option<&str>>) -> Reply {
        send(&self.router, path, key, "").await
    }

    /// Sends a request that goes on by itself.
    pub(crate) fn start(&self, path: &str, key: &str) -> tokio::task::JoinHandle<Reply> {
        start(&self.router, path, key)
    }
}

pub(crate) fn start(router: &Router, path: &str, key: &str) -> tokio::task::JoinHandle<Reply> {
    let (router, path, key) = (router.clone(), path.to_owned(), key.to_owned());
    tokio::spawn(async move { send(&router, &path, &*key, "").await })
}

#[derive(Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) retry_after: bool,
    pub(crate) replayed: bool,
}

impl Reply {
    /// What tells one response from another.
    pub(crate) fn brief(&self) -> (u16, &str) {
        (self.status, &self.body)
    }

    /// Whether it is the refusal with this code.
    pub(crate) fn is(&self, code: &str) -> bool {
        self.body.contains(&format!("\"{code}\""))
    }

    /// Whether its client learns that a retry is safe.
    pub(crate) fn says_undone(&self) -> bool {
        self.body.contains("was undone, and a retry is processed again")
    }
}

pub(crate) async fn send(router: &Router, path: &str, key: impl Into<Option<&str>>, body: impl Into<Body>) -> Reply {
    let mut request = Request::post(path);
    if let Some(key) = key.into() {
        request = request.header("idempotency-key", key);
    }
    let response = router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap_or_default();
    Reply {
        status,
        body: String::from_utf8_lossy(&body).into_owned(),
        retry_after: headers.contains_key("retry-after"),
        replayed: headers.contains_key("idempotent-replayed"),
    }
}
