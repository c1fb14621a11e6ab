//! Reading the value of a key, for a step or for an operator, and forgetting it.

use std::time::Duration;

use bytes::Bytes;
use idem_runtime::remote::OwnerToken;
use idem_runtime::{KeyPage, KeyState, StorageKey, StoredEntry, Timestamp};
use redis::{InfoDict, Pipeline, Value};
use sha1_smol::Sha1;
use tokio::time::Instant;

use crate::client::Client;
use crate::connection::Reply;
use crate::errors::Error;
use crate::node::Node;
use crate::scripts::ScriptReply;
use crate::value::{self, CLAIM, Decoded, Name, RECORD_START};

/// How often a step looks again if, each time, another request was faster.
const MAX_ATTEMPTS: u32 = 3;
/// How many keys the server looks at for a page of unknown outcomes, about.
const MAX_SCANNED: usize = 500;
/// More milliseconds than are left to any key, so that a claim counts as abandoned.
const ANY_LEASE: &str = "9007199254740991";

/// The value of a key at one moment.
struct Snapshot {
    decoded: Decoded,
    /// How many milliseconds are left to the key. Negative if a record has no expiry.
    left: i64,
    /// The time in microseconds, by the server's clock.
    now: u64,
}

/// What one step of SCAN has found.
struct Scanned {
    /// Which run of which server it was. No other one knows its cursors. Empty if the server does not say.
    run: String,
    /// The next cursor, or `0`.
    next: String,
    names: Vec<Bytes>,
}

impl Snapshot {
    /// Returns the time this many milliseconds later, or earlier, by the server's clock.
    fn after(&self, milliseconds: i64) -> Timestamp {
        let nanoseconds = i128::from(self.now) * 1000 + i128::from(milliseconds) * 1_000_000;
        Timestamp::from_nanos(u64::try_from(nanoseconds.max(0)).unwrap_or(u64::MAX))
    }
}

impl Client {
    /// Returns the claim or the head of the record under the key, and how many milliseconds are left to it.
    pub(crate) async fn peek(&self, name: &Name, deadline: Instant) -> Result<Option<(Bytes, i64)>, Error> {
        let Reply { value, .. } = self.run(&self.scripts.peek, name, &[], deadline).await?;
        let (value, left) = redis::from_redis_value(value).map_err(|_| Error::UnknownReply)?;
        let value: Option<Bytes> = value;
        Ok(value.map(|value| (value, left)))
    }

    /// Returns the entry under the key, as an operator may see it.
    pub(crate) async fn inspect(&self, key: &StorageKey) -> Result<Option<StoredEntry>, Error> {
        let Reply { value, .. } = self.run(&self.scripts.inspect, &self.name(key), &[], self.deadline()).await?;
        self.entry(key, value)
    }

    /// Returns the entry of which the script told the value.
    fn entry(&self, key: &StorageKey, reply: Value) -> Result<Option<StoredEntry>, Error> {
        let name = self.name(key);
        let reply: (Option<Bytes>, i64, (u64, u64)) =
            redis::from_redis_value(reply).map_err(|_| Error::UnknownReply)?;
        let (Some(value), left, (seconds, microseconds)) = reply else { return Ok(None) };
        let now = seconds.saturating_mul(1_000_000).saturating_add(microseconds);
        let snapshot = Snapshot { decoded: decode(&name, &value, left)?, left, now };
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

    /// Returns a page of the keys whose outcome is unknown. `from` says which server had which keys, and where the page is: at the number of
    /// a server, in which run of it, and at its cursor of SCAN.
    pub(crate) async fn inspect_unknown(&self, from: Option<&Bytes>) -> Result<KeyPage<StoredEntry>, Error> {
        let deadline = self.deadline();
        let (servers, topology) = self.servers(deadline).await?;
        let topology = Sha1::from(topology).digest().to_string();
        let from = from.map(|from| String::from_utf8_lossy(from));
        let place = from.as_deref().and_then(|from| {
            let mut parts = from.strip_prefix(&topology)?.strip_prefix(' ')?.splitn(3, ' ');
            Some((parts.next()?.parse().ok()?, parts.next()?, parts.next()?))
        });
        // Keys may have moved to a server that was read: so the first page comes again.
        let (at, run, cursor) = place.filter(|(at, ..)| *at < servers.len()).unwrap_or((0, "", "0"));
        let server = &servers[at];
        let mut scanned = self.scan(server, cursor, deadline).await?;
        if cursor != "0" && scanned.run != run {
            // It was restarted, or another server has taken its place, and has its keys in another order.
            scanned = self.scan(server, "0", deadline).await?;
        }
        let Scanned { run, next, names } = scanned;
        let mut found: Vec<_> = names.iter().filter_map(|name| Name::key(&self.prefix, name)).collect();
        // SCAN may return a key twice.
        found.sort_unstable_by_key(|key| *key.as_bytes());
        found.dedup();
        // Records may be large, so they are not read.
        let mut starts = Pipeline::new();
        for key in &found {
            starts.cmd("GETRANGE").arg(self.name(key).0).arg(0).arg(CLAIM.len() - 1);
        }
        let starts = if found.is_empty() { Vec::new() } else { server.connection.send(&starts, deadline).await?.value };
        let may_be_claim = |start: &Value| match start {
            Value::BulkString(start) => *start == CLAIM,
            // It may have moved to another node, or a right may be missing. What has another type is not ours.
            Value::ServerError(error) => error.code() != "WRONGTYPE",
            _ => false,
        };
        let claims = found.into_iter().zip(starts).filter(|(_, start)| may_be_claim(start));
        let claims: Vec<_> = claims.map(|(key, _)| key).collect();
        let mut looks = Pipeline::new();
        for (number, key) in claims.iter().enumerate() {
            let (script, name) = (&self.scripts.inspect, self.name(key));
            // From the first one on the server knows the script.
            let look =
                if number == 0 { script.in_full(Some(&name.0), &[]) } else { script.by_hash(Some(&name.0), &[]) };
            looks.add_command(look);
        }
        let replies =
            if claims.is_empty() { Vec::new() } else { server.connection.send(&looks, deadline).await?.value };
        let mut keys = Vec::new();
        for (key, reply) in claims.into_iter().zip(replies) {
            let entry = match reply {
                // Another node of the cluster may have the key by now.
                Value::ServerError(_) => self.inspect(&key).await,
                reply => self.entry(&key, reply),
            };
            match entry {
                Ok(Some(entry)) if matches!(entry.state, KeyState::Abandoned(_)) => keys.push((key, entry)),
                Ok(_) => {}
                // One damaged claim does not hide the others.
                Err(error @ Error::Unreadable { .. }) => tracing::error!(%key, %error, "a claim is not listed"),
                Err(error) => return Err(error),
            }
        }
        let next = match next.as_str() {
            "0" if at + 1 == servers.len() => None,
            "0" => Some(format!("{topology} {}  0", at + 1)),
            cursor => Some(format!("{topology} {at} {run} {cursor}")),
        };
        Ok(KeyPage::new(keys, next.map(Bytes::from)))
    }

    /// Does one step of SCAN.
    async fn scan(&self, server: &Node, cursor: &str, deadline: Instant) -> Result<Scanned, Error> {
        let mut commands = Pipeline::with_capacity(2);
        commands.cmd("INFO").arg("server");
        commands.cmd("SCAN").arg(cursor).arg("MATCH").arg(Name::pattern(&self.prefix)).arg("COUNT").arg(MAX_SCANNED);
        let Reply { value, repeated } = server.connection.send(&commands, deadline).await?;
        let mut values = value.into_iter();
        let info = redis::from_redis_value::<InfoDict>(values.next().unwrap_or_default());
        let scanned = Reply { value: values.next().unwrap_or_default(), repeated }.accepted()?.value;
        let (next, names) = redis::from_redis_value(scanned).map_err(|_| Error::UnknownReply)?;
        Ok(Scanned { run: info.ok().and_then(|info| info.get("run_id")).unwrap_or_default(), next, names })
    }

    /// Replaces a claim whose lease has not expired by one without an owner, and returns whether there was one.
    pub(crate) async fn revoke(&self, key: &StorageKey, owner: OwnerToken) -> Result<bool, Error> {
        let (name, deadline) = (self.name(key), self.deadline());
        let Some((value, left)) = self.peek(&name, deadline).await? else { return Ok(false) };
        let stored = match decode(&name, &value, left)? {
            Decoded::Claim(stored) if !stored.has_expired(left) => stored,
            _ => return Ok(false),
        };
        let ttl = Duration::from_millis(u64::try_from(stored.ttl).unwrap_or(0));
        let claim = value::encode_claim(&name, owner, ttl, &stored.fingerprint, stored.info.as_ref());
        // Less than its TTL is left: so its lease has expired.
        let expiry = stored.ttl.saturating_sub(1).max(1).to_string();
        let arguments = [&value[..], &claim, expiry.as_bytes(), ANY_LEASE.as_bytes()];
        let result = self.step(&self.scripts.take_over, &name, &arguments, deadline).await?;
        match result.reply {
            ScriptReply::Done => self.replicate(&name, claim).await.map(|()| true),
            // It is not known what the first of two tries found.
            _ if result.repeated => Err(Error::Unconfirmed),
            // The claim has ended since, and that of a later execution stays.
            ScriptReply::Absent | ScriptReply::NotExpired | ScriptReply::Found(_) => Ok(false),
        }
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

/// Decodes the value of a key to which this many milliseconds are left.
pub(crate) fn decode(name: &Name, value: &Bytes, left: i64) -> Result<Decoded, Error> {
    match value::decode(name, value) {
        // Without an expiry a claim has no age. A record needs none.
        Some(Decoded::Claim(_)) if left < 0 => Err(Error::unreadable(name)),
        Some(decoded) => Ok(decoded),
        None => Err(Error::unreadable(name)),
    }
}

#[cfg(test)]
mod tests {
    use idem_runtime::{Begin, BeginOptions, Claim, Fingerprint, Store};
    use idem_testkit::redis::Redis;

    use super::*;
    use crate::{RedisClaim, RedisStore};

    const TTL: Duration = Duration::from_secs(60);

    async fn claim(store: &RedisStore, key: &StorageKey) -> RedisClaim {
        let options = BeginOptions::new(Duration::from_secs(30), TTL);
        let Ok(Begin::Claimed(claim)) = store.begin(key, &Fingerprint::from_bytes([1; 32]), &options).await else {
            panic!("the key is free");
        };
        claim
    }

    /// Another request may change it between the look and the script.
    #[tokio::test]
    async fn what_has_changed_since_it_was_looked_at_is_not_forgotten() {
        let server = Redis::start().await;
        let store = RedisStore::connect(server.url()).await.unwrap();
        let (key, client) = (StorageKey::from_bytes([1; 32]), &store.client);
        let seen_abandoned = async |value: &Bytes| {
            let ttl = TTL.as_millis().to_string();
            let arguments = [&value[..], b"channel", ttl.as_bytes()];
            client.step(&client.scripts.forget, &client.name(&key), &arguments, client.deadline()).await.unwrap().reply
        };
        // Its owner has renewed it.
        let mut claimed = claim(&store, &key).await;
        let value = claimed.value.clone();
        assert_eq!(seen_abandoned(&value).await, ScriptReply::NotExpired);
        // Its owner has released it, and another one has come and gone.
        claimed.renew(Duration::ZERO).await.unwrap();
        claimed.release().await.unwrap();
        let mut next = claim(&store, &key).await;
        next.renew(Duration::ZERO).await.unwrap();
        assert!(matches!(seen_abandoned(&value).await, ScriptReply::Found(_)));
        next.renew(TTL).await.unwrap();
        next.release().await.unwrap();
        assert_eq!(seen_abandoned(&value).await, ScriptReply::Absent);
    }
}
