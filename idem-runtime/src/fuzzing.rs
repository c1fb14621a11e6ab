//! An entrance for fuzz targets. No part of the API.

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::fingerprint::Fingerprint;
use crate::origin::Origin;
use crate::record::{Draft, Record, Undecodable};

/// Writes a record.
pub fn record(fingerprint: Fingerprint, answer: &[u8], expires_at: Timestamp, origin: Option<&Origin>) -> Record {
    let mut draft = Draft::with_capacity(answer.len());
    draft.put(answer);
    Record::answer(fingerprint, draft, expires_at, origin)
}

/// Reads a record: its answer, if it was kept, and its expiry.
///
/// # Errors
/// The record cannot be read.
pub fn read(record: &Record) -> Result<(Option<Bytes>, Timestamp), Undecodable> {
    record.read().map(|content| (content.answer, content.expires_at))
}
