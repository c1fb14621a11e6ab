//! Reading the value of a key, for a step or for an operator, and forgetting it.

use bytes::Bytes;
use idem_runtime::{KeyState, StorageKey, StoredEntry, Timestamp};
use tokio::time::Instant;

use crate::client::{Client, ScriptReply};
use crate::connection::Reply;
use crate::errors::Error;
use crate::value::{self, Decoded, Name, RECORD_START};

/// How often a step looks again if, each time, another request was faster.
const MAX_ATTEMPTS: u32 = 3;

/// The value of a key at one moment.
struct Snapshot {
    decoded: Decoded,
    /// How many milliseconds are left to the key. Negative if a record has no expiry.
    left: i64,
    /// The time in microseconds, by the server's clock.
    now: u64,
}

impl Snapshot {
    /// Returns the time this many milliseconds later, or earlier, by the server's clock.
    fn after(&self, milliseconds: i64) -> Timestamp {
        let nanoseconds = i128::from(self.now) * 1000 + i128::from(milliseconds) * 1_000_000;
        Timestamp::from_nanos(u64::try_from(nanoseconds.max(0)).unwrap_or(u64::MAX))
    }
}

impl Client {
    /// Returns the value of the key. Writes nothing, and waits for no replica.
    async fn snapshot(&self, name: &Name, deadline: Instant) -> Result<Option<Snapshot>, Error> {
        let Reply { value, .. } = self.run(&self.scripts.inspect, name, &[], deadline).await?;
        let reply: (Option<Bytes>, i64, (u64, u64)) =
            redis::from_redis_value(value).map_err(|_| Error::UnknownReply)?;
        let (Some(value), left, (seconds, microseconds)) = reply else { return Ok(None) };
        let now = seconds.saturating_mul(1_000_000).saturating_add(microseconds);
        Ok(Some(Snapshot { decoded: decode(name, &value, left)?, left, now }))
    }

    /// Returns the claim or the head of the record under the key, and how many milliseconds are left to it.
    pub(crate) async fn peek(&self, name: &Name, deadline: Instant) -> Result<Option<(Bytes, i64)>, Error> {
        let Reply { value, .. } = self.run(&self.scripts.peek, name, &[], deadline).await?;
        let (value, left) = redis::from_redis_value(value).map_err(|_| Error::UnknownReply)?;
        let value: Option<Bytes> = value;
        Ok(value.map(|value| (value, left)))
    }

    /// Returns the entry under the key, as an operator may see it.
    pub(crate) async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, Error> {
        let name = self.name(key);
        let Some(snapshot) = self.snapshot(&name, self.deadline()).await? else { return Ok(None) };
        let mut entry = match &snapshot.decoded {
            Decoded::Record(stored) => StoredEntry::new(KeyState::Completed(stored.decode(key, &name)?)),
            Decoded::Claim(stored) => {
                let state = if stored.has_expired(snapshot.left) { KeyState::Abandoned } else { KeyState::InFlight };
                let mut entry = StoredEntry::new(state(stored.fingerprint));
                entry.info.clone_from(&stored.info);
                entry.lease_until = Some(snapshot.after(snapshot.left - stored.ttl));
                entry
            }
        };
        entry.expires_at = (snapshot.left >= 0).then(|| snapshot.after(snapshot.left));
        Ok(Some(entry))
    }

    /// Removes a record or an abandoned claim, and returns whether there was one.
    pub(crate) async fn forget(&self, name: &Name) -> Result<bool, Error> {
        let (deadline, channel) = (self.deadline(), name.channel());
        for _ in 0..MAX_ATTEMPTS {
            let Some((value, left)) = self.peek(name, deadline).await? else { return Ok(false) };
            let (start, left) = match decode(name, &value, left)? {
                Decoded::Record(_) => (&value[..RECORD_START], None),
                Decoded::Claim(stored) if !stored.has_expired(left) => return Ok(false),
                Decoded::Claim(stored) => (&value[..], Some(stored.ttl.to_string())),
            };
            let mut arguments = vec![start, channel.as_bytes()];
            arguments.extend(left.as_ref().map(String::as_bytes));
            let result = self.step(&self.scripts.forget, name, &arguments, deadline).await?;
            match result.reply {
                ScriptReply::Done => return Ok(true),
                // It is not known what the first of two tries found.
                ScriptReply::Absent | ScriptReply::Found(_) if result.repeated => return Err(Error::Unconfirmed),
                ScriptReply::Absent | ScriptReply::NotExpired => return Ok(false),
                ScriptReply::Found(_) => {}
            }
        }
        // Other requests claim the key again and again.
        Ok(false)
    }
}

/// Decodes the value of a key to which so many milliseconds are left.
pub(crate) fn decode(name: &Name, value: &Bytes, left: i64) -> Result<Decoded, Error> {
    match value::decode(name, value) {
        // Without an expiry a claim has no age. A record needs none.
        Some(Decoded::Claim(_)) if left < 0 => Err(Error::unreadable(name)),
        Some(decoded) => Ok(decoded),
        None => Err(Error::unreadable(name)),
    }
}
