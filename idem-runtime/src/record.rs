//! The record: what an execution left behind, as it will be replayed.

use std::fmt;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::fingerprint::Fingerprint;
use crate::origin::Origin;

/// What an execution left behind. A store keeps it as it is: a fingerprint and opaque bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    fingerprint: Fingerprint,
    bytes: Bytes,
}

/// The layout of [`Record::bytes`]: version, kind, expiry, the lengths of the origin and of the answer, and then the answer in
/// the adapter's own format and the origin, last since an answer is written before its origin is known. The lengths make
/// up the whole, so that a record which lost its end is found out.
const VERSION: u8 = 2;
const HEAD: usize = 1 + 1 + 8 + 2 + 8;
/// The first version had no origin and no lengths: after its head the answer goes to the end.
const FIRST: u8 = 1;
const FIRST_HEAD: usize = 1 + 1 + 8;
/// Room for most origins.
const TAIL: usize = 48;

const ANSWER: u8 = 1;
const NOT_REPLAYABLE: u8 = 2;

const SHORT: Undecodable = Undecodable("shorter than its head");

impl Record {
    /// Puts a stored record together again.
    pub fn new(fingerprint: Fingerprint, bytes: Bytes) -> Self {
        Self { fingerprint, bytes }
    }

    /// The fingerprint of the request that made this record.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// What the store keeps. The format is versioned and private to the runtime.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Where the execution came from that left the record; `None` where that was not kept, or cannot be read.
    pub fn origin(&self) -> Option<Origin> {
        let (_, end) = self.answer_within().ok()?;
        Origin::from_bytes(self.bytes.slice(end..)).ok()
    }

    /// What is left of this record where there is no room for the answer: the body ran, and the answer is lost. Same
    /// fingerprint, same expiry, same origin, a few bytes.
    #[must_use]
    pub fn tombstone(&self) -> Self {
        // A record that cannot be read has no expiry to keep; it stays unreadable, which refuses as well.
        let expires_at = self.read().map_or(Timestamp::NEVER, |content| content.expires_at);
        Self::not_replayable(self.fingerprint, expires_at, self.origin().as_ref())
    }

    pub(crate) fn answer(
        fingerprint: Fingerprint,
        draft: Draft,
        expires_at: Timestamp,
        origin: Option<&Origin>,
    ) -> Self {
        Self { fingerprint, bytes: draft.sealed(ANSWER, expires_at, origin) }
    }

    pub(crate) fn not_replayable(fingerprint: Fingerprint, expires_at: Timestamp, origin: Option<&Origin>) -> Self {
        let draft = Draft(vec![0; HEAD]);
        Self { fingerprint, bytes: draft.sealed(NOT_REPLAYABLE, expires_at, origin) }
    }

    /// Takes the record apart. Anything unexpected is an error and never a miss: a miss would run the body again.
    pub(crate) fn read(&self) -> Result<Content, Undecodable> {
        let (start, end) = self.answer_within()?;
        let (head, _) = self.bytes.split_first_chunk::<FIRST_HEAD>().ok_or(SHORT)?;
        let [_, kind, expires_at @ ..] = head;
        let answer = match *kind {
            ANSWER => Some(self.bytes.slice(start..end)),
            NOT_REPLAYABLE if start == end => None,
            _ => return Err(Undecodable("of an unknown kind")),
        };
        Ok(Content { answer, expires_at: Timestamp::from_nanos(u64::from_le_bytes(*expires_at)) })
    }

    /// Where the answer starts and ends. What follows is the origin.
    fn answer_within(&self) -> Result<(usize, usize), Undecodable> {
        match self.bytes.first() {
            None => Err(SHORT),
            Some(&FIRST) if self.bytes.len() < FIRST_HEAD => Err(SHORT),
            Some(&FIRST) => Ok((FIRST_HEAD, self.bytes.len())),
            Some(&VERSION) => {
                let (head, rest) = self.bytes.split_first_chunk::<HEAD>().ok_or(SHORT)?;
                let [.., o0, o1, a0, a1, a2, a3, a4, a5, a6, a7] = *head;
                let origin = usize::from(u16::from_le_bytes([o0, o1]));
                let answer = usize::try_from(u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]));
                match answer {
                    Ok(answer) if answer.checked_add(origin) == Some(rest.len()) => Ok((HEAD, HEAD + answer)),
                    _ => Err(Undecodable("not as long as it says")),
                }
            }
            Some(_) => Err(Undecodable("of an unknown version")),
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("fingerprint", &self.fingerprint).field("bytes", &self.bytes.len()).finish()
    }
}

/// A record taken apart.
pub(crate) struct Content {
    /// `None` where the body ran but its answer was not kept.
    pub(crate) answer: Option<Bytes>,
    pub(crate) expires_at: Timestamp,
}

/// Why a record could not be read. It is not known whether the body ran, so it does not run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undecodable(pub &'static str);

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the record is {}", self.0)
    }
}

impl std::error::Error for Undecodable {}

/// An answer while it is written down: bytes in the adapter's format, with room in front for the record's head and behind for
/// its origin, so that a large body is copied once.
///
/// ```
/// use idem_runtime::Draft;
///
/// let mut draft = Draft::with_capacity(16);
/// draft.put(b"201 ");
/// draft.put(b"created");
/// assert_eq!((draft.len(), &draft.bytes()[..]), (11, &b"201 created"[..]));
/// ```
pub struct Draft(Vec<u8>);

impl Draft {
    /// An empty draft.
    pub fn new() -> Self {
        Self::with_capacity(0)
    }

    /// An empty draft with room for `bytes` bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut draft = Vec::with_capacity(HEAD + bytes + TAIL);
        draft.resize(HEAD, 0);
        Self(draft)
    }

    /// Writes `bytes` at the end.
    pub fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// What was written so far.
    pub fn bytes(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0[HEAD..])
    }

    /// How many bytes were written.
    pub fn len(&self) -> usize {
        self.0.len() - HEAD
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn sealed(mut self, kind: u8, expires_at: Timestamp, origin: Option<&Origin>) -> Bytes {
        let origin = origin.and_then(|origin| Some((origin.bytes(), u16::try_from(origin.bytes().len()).ok()?)));
        let length = origin.as_ref().map_or(0, |(_, length)| *length);
        let answer = self.len() as u64;
        self.0[0] = VERSION;
        self.0[1] = kind;
        self.0[2..10].copy_from_slice(&expires_at.as_nanos().to_le_bytes());
        self.0[10..12].copy_from_slice(&length.to_le_bytes());
        self.0[12..HEAD].copy_from_slice(&answer.to_le_bytes());
        if let Some((origin, _)) = origin {
            // No more than that, since a record is charged for its length.
            self.0.reserve_exact(origin.len());
            self.0.extend_from_slice(origin);
        }
        if self.0.capacity() > self.0.len() + self.0.len() / 8 + 64 {
            self.0.shrink_to_fit();
        }
        self.0.into()
    }
}

impl Default for Draft {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Draft({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINGERPRINT: Fingerprint = Fingerprint::from_bytes([7; 32]);

    fn record(text: &[u8]) -> Record {
        let mut draft = Draft::with_capacity(text.len());
        draft.put(text);
        Record::answer(FINGERPRINT, draft, Timestamp::from_nanos(42), None)
    }

    #[test]
    fn an_answer_comes_back_byte_for_byte() {
        let text = [0, 255, 13, 10];
        let kept = record(&text);
        let content = Record::new(*kept.fingerprint(), kept.bytes().clone()).read().unwrap();
        assert_eq!(content.answer.as_deref(), Some(&text[..]));
        assert_eq!(content.expires_at, Timestamp::from_nanos(42));
    }

    #[test]
    fn a_tombstone_keeps_fingerprint_and_expiry_and_nothing_else() {
        let tombstone = record(b"secret").tombstone();
        assert_eq!(tombstone.fingerprint(), &FINGERPRINT);
        let content = tombstone.read().unwrap();
        assert_eq!((content.answer, content.expires_at), (None, Timestamp::from_nanos(42)));
        assert_eq!(tombstone.bytes().len(), HEAD);
    }

    #[test]
    fn damaged_bytes_are_an_error_and_never_a_miss() {
        let good = record(b"answer");
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
        assert!(damaged(&|bytes| bytes[1] = NOT_REPLAYABLE).is_err(), "a tombstone with an answer");
    }

    fn of(origin: &Origin, text: &[u8]) -> Record {
        let mut draft = Draft::with_capacity(text.len());
        draft.put(text);
        Record::answer(FINGERPRINT, draft, Timestamp::from_nanos(42), Some(origin))
    }

    #[test]
    fn an_origin_comes_back_with_its_answer_and_stays_with_a_tombstone() {
        let origin = crate::origin::tests::origin();
        for text in [&b""[..], b"answer", &[0xff; 5000]] {
            let kept = of(&origin, text);
            let content = kept.read().unwrap();
            assert_eq!((content.answer.as_deref(), kept.origin()), (Some(text), Some(origin.clone())));
            let tombstone = kept.tombstone();
            let content = tombstone.read().unwrap();
            assert_eq!((content.answer, content.expires_at), (None, Timestamp::from_nanos(42)));
            assert_eq!(tombstone.origin(), Some(origin.clone()));
        }
    }

    #[test]
    fn a_record_of_the_first_version_is_read_and_has_no_origin() {
        let text = [&[1, 1][..], &42_u64.to_le_bytes(), b"answer"].concat();
        let kept = Record::new(FINGERPRINT, text.into());
        assert_eq!((kept.read().unwrap().answer.as_deref(), kept.origin()), (Some(&b"answer"[..]), None));
    }

    #[test]
    fn an_origin_that_cannot_be_read_takes_no_answer_with_it() {
        let good = of(&crate::origin::tests::origin(), b"answer");
        let mut bytes = good.bytes().to_vec();
        bytes[HEAD + b"answer".len()] = 9;
        let unknown = Record::new(FINGERPRINT, bytes.into());
        assert_eq!((unknown.read().unwrap().answer.as_deref(), unknown.origin()), (Some(&b"answer"[..]), None));
    }

    #[test]
    fn a_record_that_lost_its_end_or_grew_is_an_error() {
        for good in [of(&crate::origin::tests::origin(), b"answer"), record(b"answer"), record(b"")] {
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
                assert!(changed.read().is_err() && changed.origin().is_none(), "{at}");
            }
        }
    }
}
