//! Redis: commands, and scripts that do no more than a command.

use bytes::Bytes;
use idem_runtime::StorageKey;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Value, cmd};

use super::expect;
use crate::Failure;
use crate::stores::subject::{Steps, TTL, checksummed};

/// As long as a claim of `RedisStore`: a head of 34 bytes, and a fingerprint.
const CLAIM: [u8; 66] = [b'c'; 66];
/// What a record has before its checksummed bytes.
const HEAD: usize = 26;

/// What is sent.
#[derive(Debug)]
enum CommandMode {
    /// `SET NX GET`, `SET` and `GET`.
    Commands,
    /// `EVALSHA` of scripts with one command each.
    Scripts { begin: String, complete: String, read: String },
}

/// A connection as `RedisStore` has it.
#[derive(Debug)]
pub struct BareRedis {
    connection: MultiplexedConnection,
    sent: CommandMode,
    record: Bytes,
    ttl: u128,
}

impl BareRedis {
    /// Connects, to send commands.
    ///
    /// # Errors
    /// There is no such server.
    pub async fn commands(url: &str) -> Result<Self, Failure> {
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connection = Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?;
        let record = [&[b'r'; HEAD][..], &checksummed()].concat().into();
        Ok(Self { connection, sent: CommandMode::Commands, record, ttl: TTL.as_millis() })
    }

    /// Connects, to run scripts that the server is given here.
    ///
    /// # Errors
    /// There is no such server, or it refuses a script.
    pub async fn scripts(url: &str) -> Result<Self, Failure> {
        let mut bare = Self::commands(url).await?;
        let mut load = async |text: &str| -> Result<String, Failure> {
            Ok(cmd("SCRIPT").arg("LOAD").arg(text).query_async(&mut bare.connection).await?)
        };
        let begin = load("return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'GET', 'PX', ARGV[2])").await?;
        let complete = load("return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])").await?;
        let read = load("return redis.call('GET', KEYS[1])").await?;
        bare.sent = CommandMode::Scripts { begin, complete, read };
        Ok(bare)
    }

    /// Each kind has its own keys, as long as those of the store.
    fn name(&self, key: &StorageKey) -> String {
        let prefix = if matches!(self.sent, CommandMode::Commands) { "cmds" } else { "luas" };
        format!("{prefix}:{}", key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    async fn ask(&mut self, command: &Cmd) -> Result<Value, Failure> {
        Ok(command.query_async(&mut self.connection).await?)
    }
}

fn script(sha: &str, name: &str) -> Cmd {
    let mut command = cmd("EVALSHA");
    command.arg(sha).arg(1).arg(name);
    command
}

impl Steps for BareRedis {
    async fn execute(&mut self, key: &StorageKey) -> Result<(), Failure> {
        let (name, ttl) = (self.name(key), self.ttl.to_string());
        let (mut begin, mut complete);
        match &self.sent {
            CommandMode::Commands => {
                (begin, complete) = (cmd("SET"), cmd("SET"));
                begin.arg(&name).arg(&CLAIM).arg("NX").arg("GET").arg("PX").arg(&ttl);
                complete.arg(&name).arg(&*self.record).arg("PX").arg(&ttl);
            }
            CommandMode::Scripts { begin: first, complete: second, .. } => {
                (begin, complete) = (script(first, &name), script(second, &name));
                begin.arg(&CLAIM).arg(&ttl);
                complete.arg(&*self.record).arg(&ttl);
            }
        }
        let was = self.ask(&begin).await?;
        expect(was == Value::Nil, "a new key was there")?;
        let set = self.ask(&complete).await?;
        expect(set == Value::Okay, "SET did not say OK")
    }

    async fn replay(&mut self, key: &StorageKey) -> Result<(), Failure> {
        let name = self.name(key);
        let read = match &self.sent {
            CommandMode::Commands => cmd("GET").arg(&name).clone(),
            CommandMode::Scripts { read, .. } => script(read, &name),
        };
        let found = self.ask(&read).await?;
        expect(matches!(found, Value::BulkString(bytes) if bytes == *self.record), "a recorded key was not there")
    }
}
