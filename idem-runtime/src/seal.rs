//! A record as a remote store keeps it: with a checksum that also binds it to its key.

use bytes::{BufMut, Bytes, BytesMut};

use crate::fingerprint::Fingerprint;
use crate::hash::{PartHasher, domain};
use crate::key::StorageKey;
use crate::record::{Record, Undecodable};

/// The layout of a sealed record: version, checksum, fingerprint, and then the record's bytes.
const VERSION: u8 = 1;
const CHECKSUM: usize = 8;
const FINGERPRINT: usize = 32;
const HEAD: usize = 1 + CHECKSUM + FINGERPRINT;

impl Record {
    /// This record as bytes that can be checked when they come back from outside this process: one string that holds
    /// everything, for the record of `key` and of no other.
    pub fn seal(&self, key: &StorageKey) -> Bytes {
        let mut sealed = BytesMut::with_capacity(HEAD + self.bytes().len());
        sealed.put_u8(VERSION);
        sealed.put_slice(&checksum(key, self.fingerprint(), self.bytes()));
        sealed.put_slice(self.fingerprint().as_bytes());
        sealed.put_slice(self.bytes());
        sealed.freeze()
    }

    /// The record that [`seal`](Self::seal) made for `key`.
    ///
    /// # Errors
    /// The bytes were cut, changed, or sealed for another key. It is not known whether the body ran, so a store reports
    /// [`StoreError::Unavailable`](crate::StoreError::Unavailable), and never a free key.
    pub fn unseal(key: &StorageKey, sealed: &Bytes) -> Result<Self, Undecodable> {
        let (head, _) = sealed.split_first_chunk::<HEAD>().ok_or(Undecodable("shorter than its seal"))?;
        if head[0] != VERSION {
            return Err(Undecodable("of an unknown version"));
        }
        let (claimed, fingerprint) = head[1..].split_at(CHECKSUM);
        let fingerprint = fingerprint.first_chunk().copied().ok_or(Undecodable("shorter than its seal"))?;
        let fingerprint = Fingerprint::from_bytes(fingerprint);
        let bytes = sealed.slice(HEAD..);
        if claimed != checksum(key, &fingerprint, &bytes) {
            return Err(Undecodable("damaged, or of another key"));
        }
        Ok(Self::new(fingerprint, bytes))
    }
}

/// Against damage and mix-ups, not against somebody who writes to the store: that one could as well write a seal.
fn checksum(key: &StorageKey, fingerprint: &Fingerprint, bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = PartHasher::new(domain::SEAL);
    hasher.part(b'k', key.as_bytes());
    hasher.part(b'f', fingerprint.as_bytes());
    hasher.part(b'r', bytes);
    let hash = hasher.finish();
    std::array::from_fn(|index| hash[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: StorageKey = StorageKey::from_bytes([3; 32]);

    fn record() -> Record {
        Record::new(Fingerprint::from_bytes([7; 32]), Bytes::from_static(b"the answer"))
    }

    #[test]
    fn a_record_comes_back_as_it_was_sealed() {
        assert_eq!(Record::unseal(&KEY, &record().seal(&KEY)), Ok(record()));
        let empty = Record::new(Fingerprint::from_bytes([0; 32]), Bytes::new());
        assert_eq!(Record::unseal(&KEY, &empty.seal(&KEY)), Ok(empty));
    }

    #[test]
    fn a_cut_at_any_byte_and_a_flip_of_any_bit_are_seen() {
        let sealed = record().seal(&KEY);
        for length in 0..sealed.len() {
            assert!(Record::unseal(&KEY, &sealed.slice(..length)).is_err(), "cut at {length}");
        }
        for bit in 0..sealed.len() * 8 {
            let mut bytes = sealed.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::unseal(&KEY, &bytes.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_record_of_another_key_is_not_taken_for_ones_own() {
        assert!(Record::unseal(&StorageKey::from_bytes([4; 32]), &record().seal(&KEY)).is_err());
    }
}
