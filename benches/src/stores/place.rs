//! Where a store keeps its records, in this run: a new server, or a file.

use std::path::{Path, PathBuf};

use idem_redis::RedisStore;
use idem_runtime::MemoryStore;
use idem_sqlx::{PostgresStore, SqliteStore};
use idem_testkit::postgres::Postgres;
use idem_testkit::redis::Redis;
use tempfile::TempDir;

use crate::Failure;
use crate::stores::bare::postgres::BarePostgres;
use crate::stores::bare::redis::BareRedis;
use crate::stores::bare::sqlite::BareSqlite;
use crate::stores::subject::{Load, StoreSubject, Subject};

/// A place, with what ends when it is dropped.
#[derive(Debug)]
pub enum Place {
    /// This process's memory.
    Memory,
    /// A server that keeps nothing on disk.
    Redis(Redis),
    /// A server, and whether it has on the disk what it acknowledged.
    Postgres(Postgres, bool),
    /// A file, and whether it is on a disk.
    Sqlite(TempDir, bool),
}

/// A store, and what it is compared with.
#[allow(missing_debug_implementations, reason = "any subject is in it")]
pub struct Comparison {
    /// The store.
    pub store: Box<dyn Subject>,
    /// The bare commands, by name.
    pub bare: Vec<(&'static str, Box<dyn Subject>)>,
}

impl Place {
    /// Starts all of them. If no disk has to be waited for, what else a step costs shows best, so PostgreSQL and SQLite
    /// are there twice.
    ///
    /// # Errors
    /// A store refuses its server.
    pub async fn all() -> Result<Vec<Self>, Failure> {
        // Folders in memory are not everywhere.
        let memory = Path::new("/dev/shm");
        let mut places = vec![
            Self::Memory,
            Self::Redis(Redis::start().await),
            Self::Postgres(Postgres::with(&["fsync=on", "max_connections=100"]).await, true),
            Self::Postgres(Postgres::with(&["fsync=off", "max_connections=100"]).await, false),
            Self::Sqlite(tempfile::tempdir()?, true),
        ];
        if memory.is_dir() {
            places.push(Self::Sqlite(tempfile::tempdir_in(memory)?, false));
        }
        for place in &places {
            place.migrate().await?;
        }
        Ok(places)
    }

    /// The name in tables.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Memory => "MemoryStore",
            Self::Redis(_) => "RedisStore",
            Self::Postgres(_, true) => "PostgresStore",
            Self::Postgres(_, false) => "PostgresStore, fsync off",
            Self::Sqlite(_, true) => "SqliteStore",
            Self::Sqlite(_, false) => "SqliteStore, file in memory",
        }
    }

    /// The port of the server, if there is one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Redis(server) => Some(server.port()),
            Self::Postgres(server, _) => Some(server.port()),
            Self::Memory | Self::Sqlite(..) => None,
        }
    }

    /// The store and the bare commands, each with a connection through `port`; nothing if there are no commands.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn compared(&self, port: Option<u16>) -> Result<Option<Comparison>, Failure> {
        let port = port.unwrap_or_default();
        Ok(match self {
            Self::Memory => None,
            Self::Redis(_) => {
                let url = redis_url(port);
                let commands = Box::new(BareRedis::commands(&url).await?) as _;
                let scripts = Box::new(BareRedis::scripts(&url).await?) as _;
                let store = Box::new(StoreSubject::new(RedisStore::connect(url).await?));
                Some(Comparison { store, bare: vec![("SET NX GET, SET", commands), ("EVALSHA twice", scripts)] })
            }
            Self::Postgres(server, _) => {
                let url = server.url_through(port);
                let store = PostgresStore::builder().max_connections(1).connect(&url).await?;
                let bare = Box::new(BarePostgres::connect(&url).await?) as _;
                Some(Comparison { store: Box::new(StoreSubject::new(store)), bare: vec![("INSERT, UPDATE", bare)] })
            }
            Self::Sqlite(folder, _) => {
                let file = file_in(folder);
                let bare = Box::new(BareSqlite::open(&file).await?) as _;
                let store = SqliteStore::open(&file).await?;
                Some(Comparison { store: Box::new(StoreSubject::new(store)), bare: vec![("INSERT, UPDATE", bare)] })
            }
        })
    }

    /// The store for this many tasks at once.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn store(&self, tasks: usize) -> Result<Box<dyn Load>, Failure> {
        Ok(match self {
            Self::Memory => {
                let builder = MemoryStore::builder().max_entries(usize::MAX).max_bytes(usize::MAX);
                Box::new(StoreSubject::new(builder.build()))
            }
            Self::Redis(server) => Box::new(StoreSubject::new(RedisStore::connect(server.url()).await?)),
            Self::Postgres(server, _) => {
                let builder = PostgresStore::builder().max_connections(tasks);
                Box::new(StoreSubject::new(builder.connect(&server.url()).await?))
            }
            Self::Sqlite(folder, _) => Box::new(StoreSubject::new(SqliteStore::open(file_in(folder)).await?)),
        })
    }

    /// Makes the tables: the store's, and one like it for the bare commands.
    async fn migrate(&self) -> Result<(), Failure> {
        for table in ["idempotency", "bare"] {
            match self {
                Self::Memory | Self::Redis(_) => {}
                Self::Postgres(server, _) => {
                    let builder = PostgresStore::builder().table(table);
                    builder.connect(&server.url()).await?.migrate().await?;
                }
                Self::Sqlite(folder, _) => {
                    SqliteStore::builder().table(table).open(file_in(folder)).await?.migrate().await?;
                }
            }
        }
        Ok(())
    }
}

fn redis_url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

fn file_in(folder: &TempDir) -> PathBuf {
    folder.path().join("idempotency.db")
}
