//! What the rows of the table mean.

use bytes::Bytes;
use idem_runtime::remote::OwnerToken;
use idem_runtime::{Begin, ExecutionInfo, Fingerprint, KeyState, Record, StorageKey, StoredEntry, Timestamp};
use sqlx::error::UnexpectedNullError;

use crate::dialect::Dialect;
use crate::errors::Problem;

/// A row of the statements that claim a key or look at it.
pub(crate) enum BeginRow {
    /// The statement wrote the claim.
    Claimed,
    /// A claim of another owner.
    Claim { owner: OwnerToken, fingerprint: Fingerprint, lease_has_expired: bool },
    /// A record of this owner.
    Record { owner: OwnerToken, record: Record },
}

/// Another session whose transaction holds a key.
pub(crate) struct Holder {
    pub(crate) session: i64,
    pub(crate) has_other_fingerprint: bool,
    pub(crate) has_other_policy: bool,
    pub(crate) has_written: bool,
}

impl Holder {
    /// Returns what it means to a request with this fingerprint.
    pub(crate) fn as_begin<C>(&self, fingerprint: &Fingerprint, info: Option<&ExecutionInfo>) -> Begin<C> {
        if !self.has_other_fingerprint {
            return Begin::InFlight(*fingerprint);
        }
        // Of another one nothing is known.
        let other = Fingerprint::from_bytes(fingerprint.as_bytes().map(|byte| !byte));
        match info {
            // A claim that cannot be inspected, so its info comes as that of a record does.
            Some(info) if self.has_other_policy => {
                Begin::Completed(Record::without_content(other, Some(&info.under_another_policy())))
            }
            _ => Begin::InFlight(other),
        }
    }
}

impl BeginRow {
    /// Reads `owner, fingerprint, record, whether the lease has expired`. If the last one is NULL, the row has a record of another
    /// fingerprint, of which the third column is the info. A row that this crate cannot have written is an error.
    pub(crate) fn read<D: Dialect>(row: &D::Row, key: &StorageKey) -> Result<Self, Problem> {
        let Some(owner) = D::bytes(row, 0).map_err(Problem::Refused)? else { return Ok(Self::Claimed) };
        let Ok(owner) = owner.try_into().map(OwnerToken::from_bytes) else {
            return Err(Problem::Damaged("damaged: its owner is too short or too long"));
        };
        let fingerprint = fingerprint(required(D::bytes(row, 1))?)?;
        let lease_has_expired = D::boolean(row, 3).map_err(Problem::Refused)?;
        match D::bytes(row, 2).map_err(Problem::Refused)? {
            info if lease_has_expired.is_none() => {
                let info = info.and_then(|info| ExecutionInfo::from_bytes(&info).ok());
                Ok(Self::Record { owner, record: Record::without_content(fingerprint, info.as_ref()) })
            }
            Some(bytes) => Ok(Self::Record { owner, record: record(key, bytes, fingerprint)? }),
            None => Ok(Self::Claim { owner, fingerprint, lease_has_expired: lease_has_expired == Some(true) }),
        }
    }
}

/// Reads `fingerprint, record, whether the lease has expired, info, end of the lease, expiry, replays` for an operator.
pub(crate) fn stored_entry<D: Dialect>(row: &D::Row, key: &StorageKey) -> Result<StoredEntry, Problem> {
    let fingerprint = fingerprint(required(D::bytes(row, 0))?)?;
    let record_bytes = D::bytes(row, 1).map_err(Problem::Refused)?;
    let is_record = record_bytes.is_some();
    let mut entry = StoredEntry::new(match record_bytes {
        Some(bytes) => KeyState::Completed(record(key, bytes, fingerprint)?),
        None if required(D::boolean(row, 2))? => KeyState::Abandoned(fingerprint),
        None => KeyState::InFlight(fingerprint),
    });
    let info = D::bytes(row, 3).map_err(Problem::Refused)?;
    // An info that cannot be read is unknown. The claim is still good.
    entry.info = info.and_then(|info| ExecutionInfo::from_bytes(&info).ok());
    let lease_until = required(D::number(row, 4))?;
    entry.lease_until = (!is_record).then(|| timestamp::<D>(lease_until));
    entry.expires_at = Some(timestamp::<D>(required(D::number(row, 5))?));
    entry.replays = u64::try_from(required(D::number(row, 6))?).ok().filter(|_| is_record);
    Ok(entry)
}

/// Reads a row of the scan for unknown outcomes: its key, and its entry if the outcome is unknown.
pub(crate) fn scanned<D: Dialect>(row: &D::Row) -> Result<(StorageKey, Option<StoredEntry>), Problem> {
    let Ok(key) = required(D::bytes(row, 7))?.try_into().map(StorageKey::from_bytes) else {
        return Err(Problem::Damaged("damaged: its key is too short or too long"));
    };
    let is_unknown = required(D::boolean(row, 8))?;
    Ok((key, if is_unknown { Some(stored_entry::<D>(row, &key)?) } else { None }))
}

/// Reads `session, whether it has another fingerprint, whether it has another policy, whether it has written`.
pub(crate) fn holder<D: Dialect>(row: &D::Row) -> Result<Holder, Problem> {
    Ok(Holder {
        session: number::<D>(row)?,
        has_other_fingerprint: required(D::boolean(row, 1))?,
        has_other_policy: required(D::boolean(row, 2))?,
        has_written: required(D::boolean(row, 3))?,
    })
}

/// Reads the number that a row begins with.
pub(crate) fn number<D: Dialect>(row: &D::Row) -> Result<i64, Problem> {
    required(D::number(row, 0))
}

fn required<T>(value: Result<Option<T>, sqlx::Error>) -> Result<T, Problem> {
    match value {
        Ok(Some(value)) => Ok(value),
        Ok(None) => Err(Problem::Refused(sqlx::Error::Decode(Box::new(UnexpectedNullError)))),
        Err(error) => Err(Problem::Refused(error)),
    }
}

fn fingerprint(bytes: Vec<u8>) -> Result<Fingerprint, Problem> {
    let fingerprint = bytes.try_into().map(Fingerprint::from_bytes);
    fingerprint.map_err(|_| Problem::Damaged("damaged: its fingerprint is too short or too long"))
}

fn record(key: &StorageKey, bytes: Vec<u8>, fingerprint: Fingerprint) -> Result<Record, Problem> {
    let record = Record::from_checksummed_bytes(key, fingerprint, &Bytes::from(bytes));
    record.map_err(|_| Problem::Damaged("damaged: its record does not match its checksum"))
}

/// A time that the database gave in ticks since 1970.
fn timestamp<D: Dialect>(ticks: i64) -> Timestamp {
    let nanos = u128::from(ticks.unsigned_abs()) * D::TICK.as_nanos();
    Timestamp::from_nanos(if ticks < 0 { 0 } else { u64::try_from(nanos).unwrap_or(u64::MAX) })
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_1970_is_its_beginning() {
        for (ticks, nanos) in [(-2, 0), (0, 0), (2, 2_000_000), (i64::MAX, u64::MAX)] {
            assert_eq!(timestamp::<sqlx::Sqlite>(ticks), Timestamp::from_nanos(nanos), "{ticks}");
        }
    }
}
