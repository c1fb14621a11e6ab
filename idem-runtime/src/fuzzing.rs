//! An entrance for fuzz targets. No part of the API.

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::error::DecodeError;
use crate::execution_info::ExecutionInfo;
use crate::fingerprint::Fingerprint;
use crate::record::{Record, RecordBuilder};

/// Writes a record.
pub fn record(fingerprint: Fingerprint, content: &[u8], expires_at: Timestamp, info: Option<&ExecutionInfo>) -> Record {
    let mut builder = RecordBuilder::with_capacity(content.len());
    builder.put(content);
    Record::with_content(fingerprint, builder, expires_at, info)
}

/// Reads a record: its content, if it was kept, and its expiry.
///
/// # Errors
/// The record cannot be read.
pub fn read(record: &Record) -> Result<(Option<Bytes>, Timestamp), DecodeError> {
    record.read().map(|read| (read.content, read.expires_at))
}
