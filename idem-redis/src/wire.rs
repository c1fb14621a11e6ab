//! What stands in Redis: names, the layout of a value, and what the scripts say of it.
//!
//! One string per key, written by the scripts alone:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, `1` |
//! | 1 | state: `C` is a claim, `R` a record |
//! | 16 | owner token |
//! | 8 | end of the lease, or of the record, in microseconds of the server's clock, big-endian |
//! | 8 | check: hex digits of a SHA-1 over the key's name and the bytes before; for a claim also over those after |
//! | rest | claim: the fingerprint, 32 bytes; record: [`Record::seal`](idem_runtime::Record::seal) |

use bytes::Bytes;
use idem_runtime::{Fingerprint, Record, StorageKey};
use redis::Value;

use crate::errors::Trouble;

/// What the first two bytes of a claim are.
pub(crate) const CLAIM: &[u8] = b"\x01C";

/// Says whose claim it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(pub(crate) [u8; 16]);

impl Owner {
    pub(crate) fn random() -> Result<Self, Trouble> {
        let mut token = [0; 16];
        getrandom::fill(&mut token).map_err(|error| Trouble::Random(error.to_string()))?;
        Ok(Self(token))
    }
}

/// The names of one key in Redis. What the client sent is not in them: a storage key is a hash.
#[derive(Clone)]
pub(crate) struct Name {
    pub(crate) key: String,
    pub(crate) channel: String,
}

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
        let channel = format!("{name}:ended");
        Self { key: name, channel }
    }

    /// The name as a message may show it: enough to find the key, too little to look it up.
    pub(crate) fn short(&self) -> String {
        self.key.get(..self.key.len() - 56).map(|start| format!("{start}*")).unwrap_or_default()
    }
}

/// What a script says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Done,
    InFlight(Bytes),
    Abandoned(Bytes),
    Record(Bytes),
    Lost,
    Absent,
    Unreadable,
}

impl Said {
    /// Reads the reply of a script.
    pub(crate) fn read(reply: Value) -> Result<Self, Trouble> {
        let Value::Array(parts) = reply else { return Err(Trouble::Reply) };
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next()) {
            (Some(Value::Int(0)), None) => Ok(Self::Unreadable),
            (Some(Value::Int(1)), None) => Ok(Self::Done),
            (Some(Value::Int(2)), None) => Ok(Self::InFlight(Bytes::new())),
            (Some(Value::Int(2)), Some(Value::BulkString(fingerprint))) => Ok(Self::InFlight(fingerprint.into())),
            (Some(Value::Int(3)), Some(Value::BulkString(owner))) => Ok(Self::Abandoned(owner.into())),
            (Some(Value::Int(4)), Some(Value::BulkString(sealed))) => Ok(Self::Record(sealed.into())),
            (Some(Value::Int(5)), None) => Ok(Self::Lost),
            (Some(Value::Int(6)), None) => Ok(Self::Absent),
            _ => Err(Trouble::Reply),
        }
    }
}

pub(crate) fn fingerprint(bytes: &[u8]) -> Result<Fingerprint, Trouble> {
    bytes.try_into().map(Fingerprint::from_bytes).map_err(|_| Trouble::Reply)
}

pub(crate) fn owner(bytes: &[u8]) -> Result<Owner, Trouble> {
    bytes.try_into().map(Owner).map_err(|_| Trouble::Reply)
}

pub(crate) fn record(key: &StorageKey, name: &Name, sealed: &Bytes) -> Result<Record, Trouble> {
    Record::unseal(key, sealed).map_err(|why| Trouble::Unreadable { name: name.short(), why: Some(why) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_prefix_and_the_hash_and_shows_eight_digits_of_it() {
        let name = Name::new("shop", &StorageKey::from_bytes([0xa5; 32]));
        assert_eq!(name.key, format!("shop:{}", "a5".repeat(32)));
        assert_eq!(name.channel, format!("shop:{}:ended", "a5".repeat(32)));
        assert_eq!(name.short(), "shop:a5a5a5a5*");
    }

    #[test]
    fn a_reply_that_no_script_gives_is_an_error() {
        assert_eq!(Said::read(Value::Array(vec![Value::Int(1)])).ok(), Some(Said::Done));
        for reply in [
            Value::Nil,
            Value::Int(1),
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(4)]),
            Value::Array(vec![Value::Int(9)]),
            Value::Array(vec![Value::Int(1), Value::BulkString(vec![1])]),
        ] {
            assert!(Said::read(reply.clone()).is_err(), "{reply:?}");
        }
        assert!(fingerprint(&[0; 31]).is_err() && owner(&[0; 17]).is_err());
    }
}
