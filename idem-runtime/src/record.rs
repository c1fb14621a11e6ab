//! The record: what an execution left behind, as it will be replayed.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::clock::Timestamp;
use crate::error::DecodeError;
use crate::execution_info::ExecutionInfo;
use crate::fingerprint::Fingerprint;
use crate::hash::{PartHasher, domain};
use crate::key::StorageKey;

/// What an execution left behind. A store keeps it as it is: a fingerprint and opaque bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    fingerprint: Fingerprint,
    bytes: Bytes,
}

/// The layout of [`Record::bytes`]: version, kind, expiry, the lengths of the execution info and of the content, and then the
/// content and the info. The info is last, since the content is written before the info is known. The lengths make up the
/// whole, so that a truncated record is detected.
const VERSION: u8 = 1;
const HEAD: usize = 1 + 1 + 8 + 2 + 8;

const CONTENT: u8 = 1;
const NOT_REPLAYABLE: u8 = 2;

const SHORT: DecodeError = DecodeError("shorter than its head");

impl Record {
    /// Returns a record that was stored earlier.
    pub fn new(fingerprint: Fingerprint, bytes: Bytes) -> Self {
        Self { fingerprint, bytes }
    }

    /// Returns the fingerprint of the request that made this record.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// Returns what the store keeps. The format is versioned and private to the runtime.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns what is known of the execution that left the record. `None` if that was not kept, or cannot be read.
    pub fn execution_info(&self) -> Option<ExecutionInfo> {
        let (_, end) = self.content_range().ok()?;
        ExecutionInfo::from_bytes(&self.bytes[end..]).ok()
    }

    /// Returns what to keep of this record if there is no room for its content: the handler ran, and the response is lost. It has
    /// the same fingerprint, expiry and execution info, and takes a few bytes.
    #[must_use]
    pub fn tombstone(&self) -> Self {
        // A record that cannot be read has no expiry to keep; it stays unreadable, which refuses as well.
        let expires_at = self.read().map_or(Timestamp::NEVER, |read| read.expires_at);
        Self::not_replayable(self.fingerprint, expires_at, self.execution_info().as_ref())
    }

    /// Returns what a store may report of a record with another fingerprint than the request's, so that it need not read the
    /// content: `fingerprint` and `info` are those of the record. It replays nothing.
    pub fn without_content(fingerprint: Fingerprint, info: Option<&ExecutionInfo>) -> Self {
        Self::not_replayable(fingerprint, Timestamp::NEVER, info)
    }

    /// Returns [`bytes`](Self::bytes) after a version and a checksum, for stores outside this process. The checksum also covers `key`
    /// and the [`fingerprint`](Self::fingerprint), which the store keeps beside them, so that the record of one key or request is
    /// never read for another.
    pub fn to_checksummed_bytes(&self, key: &StorageKey) -> Bytes {
        let mut bytes = BytesMut::with_capacity(CHECKED_HEAD + self.bytes.len());
        bytes.put_u8(VERSION);
        bytes.put_slice(&checksum(key, &self.fingerprint, &self.bytes));
        bytes.put_slice(&self.bytes);
        bytes.freeze()
    }

    /// Reads what [`to_checksummed_bytes`](Self::to_checksummed_bytes) wrote for `key` and `fingerprint`.
    ///
    /// # Errors
    /// The bytes are truncated, changed, or of another key or fingerprint. The handler has run, or may have, so a store reports
    /// [`StoreError::Unreadable`](crate::StoreError::Unreadable), and never a free key.
    pub fn from_checksummed_bytes(
        key: &StorageKey,
        fingerprint: Fingerprint,
        bytes: &Bytes,
    ) -> Result<Self, DecodeError> {
        const SHORT: DecodeError = DecodeError("shorter than its checksum");
        let (head, _) = bytes.split_first_chunk::<CHECKED_HEAD>().ok_or(SHORT)?;
        if head[0] != VERSION {
            return Err(DecodeError("of an unknown version"));
        }
        let bytes = bytes.slice(CHECKED_HEAD..);
        if head[1..] != checksum(key, &fingerprint, &bytes) {
            return Err(DecodeError("damaged, or of another key or fingerprint"));
        }
        Ok(Self::new(fingerprint, bytes))
    }

    pub(crate) fn with_content(
        fingerprint: Fingerprint,
        builder: RecordBuilder,
        expires_at: Timestamp,
        info: Option<&ExecutionInfo>,
    ) -> Self {
        Self { fingerprint, bytes: builder.finish(CONTENT, expires_at, info) }
    }

    pub(crate) fn not_replayable(
        fingerprint: Fingerprint,
        expires_at: Timestamp,
        info: Option<&ExecutionInfo>,
    ) -> Self {
        Self { fingerprint, bytes: RecordBuilder(vec![0; HEAD]).finish(NOT_REPLAYABLE, expires_at, info) }
    }

    /// Decodes the record. Anything unexpected is an error and never a miss: a miss would run the handler again.
    pub(crate) fn read(&self) -> Result<DecodedRecord, DecodeError> {
        let (start, end) = self.content_range()?;
        let (head, _) = self.bytes.split_first_chunk::<10>().ok_or(SHORT)?;
        let [_, kind, expires_at @ ..] = head;
        let content = match *kind {
            CONTENT => Some(self.bytes.slice(start..end)),
            NOT_REPLAYABLE if start == end => None,
            _ => return Err(DecodeError("of an unknown kind")),
        };
        Ok(DecodedRecord { content, expires_at: Timestamp::from_nanos(u64::from_le_bytes(*expires_at)) })
    }

    /// Returns where the content starts and ends. The execution info follows.
    fn content_range(&self) -> Result<(usize, usize), DecodeError> {
        let (head, rest) = self.bytes.split_first_chunk::<HEAD>().ok_or(SHORT)?;
        if head[0] != VERSION {
            return Err(DecodeError("of an unknown version"));
        }
        let [.., i0, i1, c0, c1, c2, c3, c4, c5, c6, c7] = *head;
        let info = usize::from(u16::from_le_bytes([i0, i1]));
        match usize::try_from(u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7])) {
            Ok(content) if content.checked_add(info) == Some(rest.len()) => Ok((HEAD, HEAD + content)),
            _ => Err(DecodeError("not as long as it says")),
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("fingerprint", &self.fingerprint).field("bytes", &self.bytes.len()).finish()
    }
}

const CHECKSUM: usize = 8;
const CHECKED_HEAD: usize = 1 + CHECKSUM;

/// Detects damage and mix-ups. It does not stop an attacker who can write to the store.
fn checksum(key: &StorageKey, fingerprint: &Fingerprint, bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = PartHasher::new(domain::CHECKSUM);
    hasher.part(b'k', key.as_bytes());
    hasher.part(b'f', fingerprint.as_bytes());
    hasher.part(b'r', bytes);
    let hash = hasher.finish();
    std::array::from_fn(|index| hash[index])
}

/// A decoded record.
pub(crate) struct DecodedRecord {
    /// `None` if the handler ran but its response was not recorded.
    pub(crate) content: Option<Bytes>,
    pub(crate) expires_at: Timestamp,
}

/// Writes a record: any bytes, in the adapter's format, with room in front for the record's head and behind for the execution
/// info, so that a large body is copied once.
///
/// ```
/// use idem_runtime::RecordBuilder;
///
/// let mut record = RecordBuilder::with_capacity(16);
/// record.put(b"201 ");
/// record.put(b"created");
/// assert_eq!((record.len(), record.as_slice()), (11, &b"201 created"[..]));
/// ```
pub struct RecordBuilder(Vec<u8>);

impl RecordBuilder {
    /// Room for most execution infos.
    const TAIL: usize = 48;

    /// Makes an empty builder.
    pub fn new() -> Self {
        Self::with_capacity(0)
    }

    /// Makes an empty builder with room for `bytes` bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(HEAD + bytes + Self::TAIL);
        buffer.resize(HEAD, 0);
        Self(buffer)
    }

    /// Writes `bytes` at the end.
    pub fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Returns what was written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.0[HEAD..]
    }

    /// Returns what was written, without a copy.
    pub(crate) fn into_content(self) -> Bytes {
        Bytes::from(self.0).slice(HEAD..)
    }

    /// Returns how many bytes were written.
    pub fn len(&self) -> usize {
        self.0.len() - HEAD
    }

    /// Returns whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn finish(mut self, kind: u8, expires_at: Timestamp, info: Option<&ExecutionInfo>) -> Bytes {
        // An info is at most a few hundred bytes, so it always fits.
        let info = info.and_then(|info| Some((info, u16::try_from(info.encoded_length()).ok()?)));
        let length = info.map_or(0, |(_, length)| length);
        let content = self.len() as u64;
        self.0[0] = VERSION;
        self.0[1] = kind;
        self.0[2..10].copy_from_slice(&expires_at.as_nanos().to_le_bytes());
        self.0[10..12].copy_from_slice(&length.to_le_bytes());
        self.0[12..HEAD].copy_from_slice(&content.to_le_bytes());
        if let Some((info, length)) = info {
            // No more than that, since a record is charged for its length.
            self.0.reserve_exact(usize::from(length));
            info.encode(&mut self.0);
        }
        if self.0.capacity() > self.0.len() + self.0.len() / 8 + 64 {
            self.0.shrink_to_fit();
        }
        self.0.into()
    }
}

impl Default for RecordBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RecordBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordBuilder({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execution_info::tests::info;

    const KEY: StorageKey = StorageKey::from_bytes([3; 32]);
    const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([7; 32]);

    fn record(content: &[u8], info: Option<&ExecutionInfo>) -> Record {
        let mut builder = RecordBuilder::with_capacity(content.len());
        builder.put(content);
        Record::with_content(FINGERPRINT, builder, Timestamp::from_nanos(42), info)
    }

    #[test]
    fn content_comes_back_byte_for_byte() {
        let content = [0, 255, 13, 10];
        let stored = record(&content, None);
        let read = Record::new(*stored.fingerprint(), stored.bytes().clone()).read().unwrap();
        assert_eq!(read.content.as_deref(), Some(&content[..]));
        assert_eq!(read.expires_at, Timestamp::from_nanos(42));
    }

    #[test]
    fn a_builder_tells_what_was_written() {
        let mut builder = RecordBuilder::new();
        assert!(builder.is_empty());
        builder.put(b"content");
        assert_eq!((builder.is_empty(), builder.len(), builder.as_slice()), (false, 7, &b"content"[..]));
        assert_eq!(builder.into_content(), b"content"[..]);
    }

    #[test]
    fn a_tombstone_keeps_fingerprint_and_expiry_and_nothing_else() {
        let tombstone = record(b"secret", None).tombstone();
        assert_eq!(tombstone.fingerprint(), &FINGERPRINT);
        let read = tombstone.read().unwrap();
        assert_eq!((read.content, read.expires_at), (None, Timestamp::from_nanos(42)));
        assert_eq!(tombstone.bytes().len(), HEAD);
    }

    #[test]
    fn damaged_bytes_are_an_error_and_never_a_miss() {
        let good = record(b"content", None);
        let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.bytes().to_vec();
            change(&mut bytes);
            Record::new(FINGERPRINT, bytes.into()).read().map(|_| ())
        };
        for length in 0..HEAD {
            assert!(damaged(&|bytes| bytes.truncate(length)).is_err(), "{length}");
        }
        assert!(damaged(&|bytes| bytes[0] = 9).is_err(), "version");
        assert!(damaged(&|bytes| bytes[1] = 9).is_err(), "kind");
        assert!(damaged(&|bytes| bytes[1] = NOT_REPLAYABLE).is_err(), "a tombstone with content");
    }

    #[test]
    fn an_execution_info_comes_back_and_stays_with_a_tombstone() {
        let info = info();
        for content in [&b""[..], b"content", &[0xff; 5000]] {
            let stored = record(content, Some(&info));
            let read = stored.read().unwrap();
            assert_eq!((read.content.as_deref(), stored.execution_info()), (Some(content), Some(info.clone())));
            let tombstone = stored.tombstone();
            let read = tombstone.read().unwrap();
            assert_eq!((read.content, read.expires_at), (None, Timestamp::from_nanos(42)));
            assert_eq!(tombstone.execution_info(), Some(info.clone()));
        }
    }

    #[test]
    fn an_execution_info_that_cannot_be_read_does_not_hide_the_content() {
        let good = record(b"content", Some(&info()));
        let mut bytes = good.bytes().to_vec();
        bytes[HEAD + b"content".len()] = 9;
        let unknown = Record::new(FINGERPRINT, bytes.into());
        assert_eq!(unknown.read().unwrap().content.as_deref(), Some(&b"content"[..]));
        assert_eq!(unknown.execution_info(), None);
    }

    #[test]
    fn a_record_that_was_truncated_or_grew_is_an_error() {
        for good in [record(b"content", Some(&info())), record(b"content", None), record(b"", None)] {
            let bytes = good.bytes();
            let read = |bytes: Bytes| Record::new(FINGERPRINT, bytes).read().map(|_| ());
            assert!(read(bytes.clone()).is_ok());
            for length in 0..bytes.len() {
                assert!(read(bytes.slice(..length)).is_err(), "{length}");
            }
            assert!(read([&bytes[..], b"x"].concat().into()).is_err(), "longer");
            for at in 10..HEAD {
                let mut changed = bytes.to_vec();
                changed[at] ^= 0xff;
                let changed = Record::new(FINGERPRINT, changed.into());
                assert!(changed.read().is_err() && changed.execution_info().is_none(), "{at}");
            }
        }
    }

    #[test]
    fn a_record_comes_back_from_its_checksummed_bytes() {
        let read = |record: &Record| {
            Record::from_checksummed_bytes(&KEY, *record.fingerprint(), &record.to_checksummed_bytes(&KEY))
        };
        for record in [record(b"content", None), Record::new(Fingerprint::from_bytes([0; 32]), Bytes::new())] {
            assert_eq!(read(&record), Ok(record));
        }
    }

    #[test]
    fn a_cut_at_any_byte_and_a_flip_of_any_bit_are_detected() {
        let good = record(b"content", None).to_checksummed_bytes(&KEY);
        for length in 0..good.len() {
            let cut = good.slice(..length);
            assert!(Record::from_checksummed_bytes(&KEY, FINGERPRINT, &cut).is_err(), "cut at {length}");
        }
        for bit in 0..good.len() * 8 {
            let mut bytes = good.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::from_checksummed_bytes(&KEY, FINGERPRINT, &bytes.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_record_of_another_key_or_fingerprint_is_refused() {
        let bytes = record(b"content", None).to_checksummed_bytes(&KEY);
        let (other_key, other) = (StorageKey::from_bytes([4; 32]), Fingerprint::from_bytes([4; 32]));
        assert!(Record::from_checksummed_bytes(&other_key, FINGERPRINT, &bytes).is_err());
        assert!(Record::from_checksummed_bytes(&KEY, other, &bytes).is_err());
    }
}
