//! What stands in Redis: the names of keys, and the layout of a value, one string per key.
//!
//! | bytes | a claim |
//! |---|---|
//! | 1 | version, `2` |
//! | 1 | `C` |
//! | 16 | owner token |
//! | 8 | its lease, in milliseconds, big-endian |
//! | 8 | its life: lease and TTL, for which the key is kept from the last renewal, in milliseconds, big-endian |
//! | 8 | check: hex digits of a SHA-1 over the key's name and all other bytes |
//! | 32 | fingerprint |
//! | rest | [`Origin::bytes`], or nothing |
//!
//! A claim does not say when its lease is over, since a `SET` cannot ask for the time. It is written with its whole life as
//! the key's expiry, and a renewal gives it the whole life again, so what is left of it tells its age by the server's clock.
//!
//! | bytes | a record |
//! |---|---|
//! | 1 | version, `1` |
//! | 1 | `R` |
//! | 16 | owner token |
//! | 8 | nothing: the largest time that version 1 can express |
//! | 8 | check: hex digits of a SHA-1 over the key's name and the bytes before |
//! | rest | [`Record::seal`] |
//!
//! A record is over when its key is. Version 1 had the end of a claim's lease and of a record in microseconds of the server's
//! clock where a record now has nothing, and a claim had the layout of a record, with the fingerprint at its end and under its
//! check. Such values are read; a process that knows only them reads the records above, and takes the claims for damaged,
//! so that it refuses their keys and leaves them alone.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use idem_runtime::{Fingerprint, Origin, Record, StorageKey};
use sha1_smol::Sha1;

use crate::errors::Trouble;

/// What the first two bytes of a claim may be.
pub(crate) const CLAIM_STARTS: [&[u8]; 2] = [FORMER_CLAIM, CLAIM];
const FORMER_CLAIM: &[u8] = b"\x01C";
const CLAIM: &[u8] = b"\x02C";
const RECORD: &[u8] = b"\x01R";

const CHECK: usize = 8;
const FINGERPRINT: usize = 32;
/// What stands before the check, and what is before the rest.
const CLAIM_HEAD: usize = 2 + 16 + 8 + 8;
const RECORD_HEAD: usize = 2 + 16 + 8;
/// Up to here a record is the same whenever its owner writes it.
pub(crate) const RECORD_START: usize = RECORD_HEAD + CHECK;

/// In the year 2255. No later time is a whole number in the scripts of version 1.
const NEVER: u64 = 1 << 53;

/// The longest lease or TTL. Longer ones are cut to it, so that no sum of times is more than Redis can count.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Says whose claim it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(pub(crate) [u8; 16]);

impl Owner {
    pub(crate) fn random() -> Result<Self, Trouble> {
        let mut token = [0; 16];
        getrandom::fill(&mut token).map_err(|error| Trouble::Random(error.to_string()))?;
        Ok(Self(token))
    }
}

/// The name of one key in Redis. What the client sent is not in it: a storage key is a hash.
#[derive(Clone)]
pub(crate) struct Name(pub(crate) String);

impl Name {
    pub(crate) fn new(prefix: &str, key: &StorageKey) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut name = String::with_capacity(prefix.len() + 65);
        name.push_str(prefix);
        name.push(':');
        for byte in key.as_bytes() {
            name.push(char::from(DIGITS[usize::from(byte >> 4)]));
            name.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        Self(name)
    }

    /// Where those who wait for the end of a claim are told of it.
    pub(crate) fn channel(&self) -> String {
        [&self.0, ":ended"].concat()
    }

    /// The name as a message may show it: enough to find the key, too little to look it up.
    pub(crate) fn short(&self) -> String {
        self.0.get(..self.0.len() - 56).map(|start| format!("{start}*")).unwrap_or_default()
    }

    /// Four bytes against damage. They bind a value to its key, so that a copy under another key is not read.
    fn check<const PARTS: usize>(&self, covered: [&[u8]; PARTS]) -> [u8; CHECK] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hash = Sha1::new();
        hash.update(self.0.as_bytes());
        covered.into_iter().for_each(|part| hash.update(part));
        let hash = hash.digest().bytes();
        std::array::from_fn(|digit| DIGITS[usize::from((hash[digit / 2] >> (4 * (1 - digit % 2))) & 15)])
    }
}

/// A duration as Redis takes it: whole milliseconds, rounded up, and at least one.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.min(LONGEST).as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

/// How long a claim lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    lease: u64,
    pub(crate) lives: u64,
}

impl Times {
    /// A claim is kept for its lease, and then, abandoned, for its `ttl`, however the two compare: where the key went with the
    /// lease, it would be free while an owner that is cut off runs the body.
    pub(crate) fn new(lease: Duration, ttl: Duration) -> Self {
        let lease = milliseconds(lease);
        Self { lease, lives: lease.saturating_add(milliseconds(ttl)) }
    }
}

/// A claim, as its owner writes it.
pub(crate) fn claim(
    name: &Name,
    owner: Owner,
    times: Times,
    fingerprint: &Fingerprint,
    origin: Option<&Origin>,
) -> Bytes {
    let origin = origin.map_or(&[][..], |origin| origin.bytes());
    let mut value = BytesMut::with_capacity(CLAIM_HEAD + CHECK + FINGERPRINT + origin.len());
    value.put_slice(CLAIM);
    value.put_slice(&owner.0);
    value.put_u64(times.lease);
    value.put_u64(times.lives);
    let check = name.check([&value, fingerprint.as_bytes(), origin]);
    value.put_slice(&check);
    value.put_slice(fingerprint.as_bytes());
    value.put_slice(origin);
    value.freeze()
}

/// A record, as the owner of the claim writes it.
pub(crate) fn record(name: &Name, owner: Owner, sealed: &[u8]) -> Bytes {
    let mut value = BytesMut::with_capacity(RECORD_START + sealed.len());
    value.put_slice(RECORD);
    value.put_slice(&owner.0);
    value.put_u64(NEVER);
    let check = name.check([&value]);
    value.put_slice(&check);
    value.put_slice(sealed);
    value.freeze()
}

/// What stands under a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Claim(Held),
    Record(Bytes),
}

/// Somebody's claim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) owner: Owner,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) ends: Ends,
    /// Not known of a claim of version 1, nor where its owner has not said it.
    pub(crate) origin: Option<Origin>,
}

/// When the lease of a claim is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// When less than so many milliseconds are left to its key.
    Left(i64),
    /// At this time, in microseconds of the server's clock.
    At(u64),
}

impl Ends {
    /// Redis counts in milliseconds and cuts what is below, so a lease that is over by that count is over by any.
    pub(crate) fn are_over(self, left: i64, now: u64) -> bool {
        match self {
            Self::Left(less_than) => left < less_than,
            Self::At(end) => end <= now,
        }
    }

    /// What a script must compare to know that a claim is still over. Nothing where a renewal changes the value.
    pub(crate) fn left(self) -> Option<String> {
        match self {
            Self::Left(less_than) => Some(less_than.to_string()),
            Self::At(_) => None,
        }
    }
}

/// Reads a value. `None` if this store did not write it under this name, or if it was damaged.
pub(crate) fn read(name: &Name, value: &Bytes) -> Option<Written> {
    let (start, _) = value.split_at_checked(2)?;
    if start == CLAIM {
        let (head, rest) = value.split_at_checked(CLAIM_HEAD)?;
        let (check, rest) = rest.split_at_checked(CHECK)?;
        let (fingerprint, _) = rest.split_first_chunk()?;
        let (owner, times) = head[2..].split_first_chunk()?;
        let (lease, lives) = times.split_first_chunk()?;
        let (lease, lives) = (u64::from_be_bytes(*lease), u64::from_be_bytes(lives.try_into().ok()?));
        let ends = Ends::Left(i64::try_from(lives.checked_sub(lease)?).ok()?);
        // An origin that cannot be read is as good as none: a later version may have written it.
        let origin = Origin::from_bytes(value.slice(CLAIM_HEAD + CHECK + FINGERPRINT..)).ok();
        let fingerprint = Fingerprint::from_bytes(*fingerprint);
        let held = Held { owner: Owner(*owner), fingerprint, ends, origin };
        return (check == name.check([head, rest])).then_some(Written::Claim(held));
    }
    let (head, rest) = value.split_at_checked(RECORD_HEAD)?;
    let (check, rest) = rest.split_at_checked(CHECK)?;
    if start == RECORD {
        return (check == name.check([head])).then(|| Written::Record(value.slice(RECORD_START..)));
    }
    if start != FORMER_CLAIM {
        return None;
    }
    let fingerprint = Fingerprint::from_bytes(rest.try_into().ok()?);
    let (owner, end) = head[2..].split_first_chunk()?;
    let ends = Ends::At(u64::from_be_bytes(end.try_into().ok()?));
    let held = Held { owner: Owner(*owner), fingerprint, ends, origin: None };
    (check == name.check([head, rest])).then_some(Written::Claim(held))
}

/// The record whose bytes these are.
pub(crate) fn unseal(key: &StorageKey, name: &Name, sealed: &Bytes) -> Result<Record, Trouble> {
    Record::unseal(key, sealed).map_err(|why| Trouble::Unreadable { name: name.short(), why: Some(why) })
}

#[cfg(test)]
mod tests;
