//! What is stored in Redis: the names of keys, and the layout of a value, one string for each key.
//!
//! | bytes | a claim |
//! |---|---|
//! | 1 | version, `1` |
//! | 1 | `C` |
//! | 16 | owner token |
//! | 8 | TTL in milliseconds, big-endian: how long the key outlives the lease |
//! | 8 | checksum over the key's name and all other bytes |
//! | 32 | fingerprint |
//! | rest | [`ExecutionInfo::to_bytes`], or nothing |
//!
//! A claim does not contain the end of its lease, since a `SET` cannot ask for the time. It is written with lease and TTL
//! together as the key's expiry, and a renewal sets that expiry again. So the lease has expired when less than the TTL is left,
//! by the server's clock.
//!
//! | bytes | a record |
//! |---|---|
//! | 1 | version, `1` |
//! | 1 | `R` |
//! | 16 | owner token |
//! | 32 | fingerprint |
//! | 2 | length of the summary, big-endian |
//! | 8 | checksum over the key's name, the bytes before and the summary |
//! | .. | summary: the record without its content, as [`Record::tombstone`] makes it |
//! | rest | [`Record::to_checksummed_bytes`] |
//!
//! Up to the summary it is the head of the record. A step that does not replay the record reads its head alone.
//!
//! A record expires with its key. A checksum is the first 8 bytes of a SHA-1.

use std::str;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use idem_runtime::remote::OwnerToken;
use idem_runtime::{ExecutionInfo, Fingerprint, Record, StorageKey};
use sha1_smol::Sha1;

use crate::errors::Error;

/// What the values of claims and records begin with.
pub(crate) const CLAIM: &[u8] = b"\x01C";
const RECORD: &[u8] = b"\x01R";

const CHECKSUM: usize = 8;
const FINGERPRINT: usize = 32;
/// The lengths up to the checksum.
const CLAIM_HEAD: usize = 2 + 16 + 8;
const RECORD_HEAD: usize = RECORD_START + 2;
/// How many bytes at the start of a record are equal in all records of one owner. `complete.lua` has the same number.
pub(crate) const RECORD_START: usize = 2 + 16 + FINGERPRINT;

/// The longest lease or TTL. Longer ones are cut to it, so that no sum of times is more than Redis can count.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

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

    /// The names of all keys, as a pattern.
    pub(crate) fn pattern(prefix: &str) -> String {
        let mut pattern = String::with_capacity(prefix.len() + 2);
        for character in prefix.chars() {
            if matches!(character, '*' | '?' | '[' | ']' | '^' | '-' | '\\') {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern + ":*"
    }

    /// Returns the key whose name this is.
    pub(crate) fn key(prefix: &str, name: &[u8]) -> Option<StorageKey> {
        let digits = str::from_utf8(name).ok()?.strip_prefix(prefix)?.strip_prefix(':')?;
        let mut bytes = [0; 32];
        if digits.len() != 64 || !digits.is_ascii() {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.get(at * 2..at * 2 + 2)?, 16).ok()?;
        }
        Some(StorageKey::from_bytes(bytes))
    }

    /// The channel on which the end of a claim is published.
    pub(crate) fn channel(&self) -> String {
        [&self.0, ":ended"].concat()
    }

    /// The name as a message may show it: enough to find the key, too little to look it up.
    pub(crate) fn short(&self) -> String {
        self.0.get(..self.0.len() - 56).map(|start| format!("{start}*")).unwrap_or_default()
    }

    /// Detects damage, and binds a value to its key, so that a copy under another key is not read.
    fn checksum<const PARTS: usize>(&self, covered: [&[u8]; PARTS]) -> [u8; CHECKSUM] {
        let mut hash = Sha1::new();
        hash.update(self.0.as_bytes());
        covered.into_iter().for_each(|part| hash.update(part));
        let hash = hash.digest().bytes();
        std::array::from_fn(|index| hash[index])
    }
}

impl Error {
    /// The value under this name cannot be read.
    pub(crate) fn unreadable(name: &Name) -> Self {
        Self::Unreadable { name: name.short(), cause: None }
    }
}

/// A duration as Redis takes it: whole milliseconds, rounded up, and at least one.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.min(MAX_TTL).as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1)
}

/// The expiry of a claim's key, in milliseconds: its lease, and then its TTL while it is abandoned. If the key expired with
/// the lease, it would be free while an owner that is cut off runs the handler.
pub(crate) fn claim_expiry(lease: Duration, ttl: Duration) -> u64 {
    milliseconds(lease).saturating_add(milliseconds(ttl))
}

/// Returns the value of a claim.
pub(crate) fn encode_claim(
    name: &Name,
    owner: OwnerToken,
    ttl: Duration,
    fingerprint: &Fingerprint,
    info: Option<&ExecutionInfo>,
) -> Bytes {
    let info = info.map(ExecutionInfo::to_bytes).unwrap_or_default();
    let mut value = BytesMut::with_capacity(CLAIM_HEAD + CHECKSUM + FINGERPRINT + info.len());
    value.put_slice(CLAIM);
    value.put_slice(owner.as_bytes());
    value.put_u64(milliseconds(ttl));
    let checksum = name.checksum([&value, fingerprint.as_bytes(), &info]);
    value.put_slice(&checksum);
    value.put_slice(fingerprint.as_bytes());
    value.put_slice(&info);
    value.freeze()
}

/// Returns the value of a record.
pub(crate) fn encode_record(key: &StorageKey, name: &Name, owner: OwnerToken, record: &Record) -> Bytes {
    let (tombstone, content) = (record.tombstone(), record.to_checksummed_bytes(key));
    // An execution info is never that long. Without a summary, operators are told less of a mismatch.
    let length = u16::try_from(tombstone.bytes().len()).unwrap_or(0);
    let summary = &tombstone.bytes()[..usize::from(length)];
    let mut value = BytesMut::with_capacity(RECORD_HEAD + CHECKSUM + summary.len() + content.len());
    value.put_slice(RECORD);
    value.put_slice(owner.as_bytes());
    value.put_slice(record.fingerprint().as_bytes());
    value.put_u16(length);
    let checksum = name.checksum([&value, summary]);
    value.put_slice(&checksum);
    value.put_slice(summary);
    value.put_slice(&content);
    value.freeze()
}

/// A decoded value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    Claim(StoredClaim),
    Record(StoredRecord),
}

/// A record as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StoredRecord {
    /// The record without its content.
    pub(crate) summary: Record,
    /// The checksummed bytes of the record. Empty if only the head was read.
    content: Bytes,
}

impl StoredRecord {
    /// Decodes the whole record.
    pub(crate) fn decode(&self, key: &StorageKey, name: &Name) -> Result<Record, Error> {
        Record::from_checksummed_bytes(key, *self.summary.fingerprint(), &self.content)
            .map_err(|cause| Error::Unreadable { name: name.short(), cause: Some(cause) })
    }
}

/// A claim as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StoredClaim {
    pub(crate) fingerprint: Fingerprint,
    /// In milliseconds. The lease has expired when less is left to the key.
    pub(crate) ttl: i64,
    /// `None` if the owner gave none, or if it cannot be read.
    pub(crate) info: Option<ExecutionInfo>,
}

impl StoredClaim {
    /// Whether the lease has expired if this many milliseconds are left to the key. Redis rounds them down, so never too early.
    pub(crate) fn has_expired(&self, left: i64) -> bool {
        left < self.ttl
    }
}

/// Decodes a value, or the head of a record. `None` if this store did not write it under this name, or if it is damaged.
pub(crate) fn decode(name: &Name, value: &Bytes) -> Option<Decoded> {
    if value.starts_with(RECORD) {
        let (head, rest) = value.split_at_checked(RECORD_HEAD)?;
        let (checksum, rest) = rest.split_at_checked(CHECKSUM)?;
        let length = usize::from(u16::from_be_bytes(*head.last_chunk()?));
        let (summary, _) = rest.split_at_checked(length)?;
        if checksum != name.checksum([head, summary]) {
            return None;
        }
        let fingerprint = Fingerprint::from_bytes(*head[..RECORD_START].last_chunk()?);
        let start = RECORD_HEAD + CHECKSUM;
        let summary = Record::new(fingerprint, value.slice(start..start + length));
        return Some(Decoded::Record(StoredRecord { summary, content: value.slice(start + length..) }));
    }
    if !value.starts_with(CLAIM) {
        return None;
    }
    let (head, rest) = value.split_at_checked(CLAIM_HEAD)?;
    let (checksum, rest) = rest.split_at_checked(CHECKSUM)?;
    if checksum != name.checksum([head, rest]) {
        return None;
    }
    let (fingerprint, info) = rest.split_first_chunk()?;
    let ttl = u64::from_be_bytes(*head.last_chunk()?);
    Some(Decoded::Claim(StoredClaim {
        fingerprint: Fingerprint::from_bytes(*fingerprint),
        ttl: i64::try_from(ttl).ok()?,
        info: ExecutionInfo::from_bytes(info).ok(),
    }))
}

#[cfg(test)]
mod tests;
