//! What both stores are inside: the steps of a store over one table.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idem_runtime::{Begin, Fingerprint, Found, Origin, Record, Standing, StorageKey, StoreError, Terms, Timestamp};

use crate::claim::CoreClaim;
use crate::counting::Counter;
use crate::database::{Asker, Database, Seen, Shown, Statements, Value};
use crate::errors::{DatabaseError, Problem, Step};
use crate::orphans::Orphans;
use crate::waiting::Waiters;

/// How often `begin` looks again where the key changed hands while it was looking.
const LOOKS: usize = 16;
/// For how long a claim stays that nobody said a TTL for. Longer than anybody keeps a database.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

pub(crate) struct Core<D: Database> {
    pub(crate) asker: Arc<Asker<D>>,
    /// Where reading has connections of its own.
    pub(crate) reader: Option<Asker<D>>,
    pub(crate) sql: Statements,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) orphans: Orphans<D>,
    /// Where replays are counted.
    pub(crate) counter: Option<Counter<D>>,
    pub(crate) batch: u32,
}

impl<D: Database> Core<D> {
    pub(crate) fn new(asker: Asker<D>, reader: Option<Asker<D>>, sql: Statements, batch: u32, counts: bool) -> Self {
        let (asker, waiters) = (Arc::new(asker), Arc::<Waiters>::default());
        let orphans = Orphans::new(Arc::clone(&asker), Arc::clone(&sql.release), Arc::clone(&waiters));
        let counter = counts.then(|| Counter::new(Arc::clone(&asker), Arc::clone(&sql.count)));
        Self { asker, reader, sql, waiters, orphans, counter, batch }
    }

    pub(crate) async fn begin(
        self: &Arc<Self>,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        terms: &Terms<'_>,
    ) -> Result<Begin<CoreClaim<D>>, StoreError> {
        let &Terms { lease, ttl, .. } = terms;
        let failed = |problem| DatabaseError { step: Step::Begin, problem };
        let owner = new_owner().map_err(failed)?;
        let claim = CoreClaim::new(self, *key, *fingerprint, owner, ttl);
        let retention = D::ticks(claim.retention(lease));
        let unheard = self.orphans.guard(key, owner, lease);
        for _ in 0..LOOKS {
            if let (Some(look), Some(reader)) = (&self.sql.look, &self.reader) {
                let asked = reader.ask(Step::Begin, look, &[key_value(key), Value::Bytes(&owner)]).await?;
                if let Some(row) = asked.rows.first() {
                    let seen = D::seen(row).map_err(|error| failed(Problem::Refused(error)))?;
                    // An heir has an owner of its own, since the claim of this one may yet turn up and be given back.
                    let claim = CoreClaim::new(self, *key, *fingerprint, new_owner().map_err(failed)?, ttl);
                    return Ok(judge(seen, claim, terms).map_err(failed)?);
                }
            }
            let origin = terms.origin();
            let values = [
                key_value(key),
                Value::Bytes(&owner),
                Value::Bytes(fingerprint.as_bytes()),
                Value::Number(D::ticks(lease.min(FOR_EVER))),
                Value::Number(retention),
                Value::Maybe(origin.as_ref().map(|origin| &origin.bytes()[..])),
            ];
            let asked = self.asker.ask_doubting(Step::Begin, &self.sql.begin, &values, unheard.doubt()).await?;
            if let Some(row) = asked.rows.first() {
                // An heir takes the claim over with this same owner, so nothing may be given back from here on.
                unheard.disarm();
                let seen = D::seen(row).map_err(|error| failed(Problem::Refused(error)))?;
                return Ok(judge(seen, claim, terms).map_err(failed)?);
            }
            // Somebody else's statement won, and this one could not see yet what it left; the next one will.
        }
        Err(failed(Problem::Contended).into())
    }

    pub(crate) async fn inspect(&self, key: &StorageKey) -> Result<Option<Found>, StoreError> {
        let failed = |problem| DatabaseError { step: Step::Inspect, problem };
        let asker = self.reader.as_ref().unwrap_or(&self.asker);
        let asked = asker.ask(Step::Inspect, &self.sql.inspect, &[key_value(key)]).await?;
        let Some(row) = asked.rows.first() else { return Ok(None) };
        let shown = D::shown(row).map_err(|error| failed(Problem::Refused(error)))?;
        let replays = u64::try_from(shown.replays).ok().filter(|_| self.counter.is_some() && shown.record.is_some());
        let mut found = found::<D>(key, shown).map_err(failed)?;
        found.replays = replays;
        Ok(Some(found))
    }

    pub(crate) async fn forget(&self, key: &StorageKey) -> Result<bool, StoreError> {
        let asked = self.asker.ask(Step::Forget, &self.sql.forget, &[key_value(key)]).await?;
        if !asked.rows.is_empty() {
            self.waiters.wake(key);
            return Ok(true);
        }
        if asked.repeated {
            // It is gone, but whether the first try removed it or there was nothing is not known.
            let problem = Problem::TimedOut { waited: self.asker.timeout };
            return Err(DatabaseError { step: Step::Forget, problem }.into());
        }
        Ok(false)
    }
}

/// What a row says to whoever wants to claim its key. A row that this crate cannot have written is an error.
fn judge<D: Database>(seen: Seen, claim: CoreClaim<D>, terms: &Terms<'_>) -> Result<Begin<CoreClaim<D>>, Problem> {
    let Seen::Standing { owner, fingerprint, record, lapsed } = seen else { return Ok(Begin::Claimed(claim)) };
    let (Ok(owner), Ok(fingerprint)) = (<[u8; 16]>::try_from(owner), <[u8; 32]>::try_from(fingerprint)) else {
        return Err(Problem::Damaged("damaged: its owner or its fingerprint is too short or too long"));
    };
    let fingerprint = Fingerprint::from_bytes(fingerprint);
    if let Some(sealed) = record {
        let record = unsealed(&claim.key, sealed, &fingerprint)?;
        claim.finds_record_of(owner, &fingerprint);
        return Ok(Begin::Completed(record));
    }
    if lapsed && fingerprint == claim.fingerprint {
        return Ok(Begin::Abandoned(claim.heir_of(owner, terms.origin())));
    }
    Ok(Begin::InFlight(fingerprint))
}

fn unsealed(key: &StorageKey, sealed: Vec<u8>, fingerprint: &Fingerprint) -> Result<Record, Problem> {
    let Ok(record) = Record::unseal(key, &Bytes::from(sealed)) else {
        return Err(Problem::Damaged("damaged: its record does not match its seal"));
    };
    if record.fingerprint() != fingerprint {
        return Err(Problem::Damaged("damaged: its record is of another fingerprint"));
    }
    Ok(record)
}

/// What a row says to an operator.
fn found<D: Database>(key: &StorageKey, shown: Shown) -> Result<Found, Problem> {
    let Ok(fingerprint) = <[u8; 32]>::try_from(shown.fingerprint) else {
        return Err(Problem::Damaged("damaged: its fingerprint is too short or too long"));
    };
    let fingerprint = Fingerprint::from_bytes(fingerprint);
    let is_record = shown.record.is_some();
    let mut found = Found::new(match shown.record {
        Some(sealed) => Standing::Completed(unsealed(key, sealed, &fingerprint)?),
        None if shown.lapsed => Standing::Abandoned(fingerprint),
        None => Standing::InFlight(fingerprint),
    });
    // One that cannot be read, say of a later version, is as good as none.
    found.origin = shown.origin.and_then(|origin| Origin::from_bytes(origin.into()).ok());
    found.lease_until = (!is_record).then(|| time::<D>(shown.lease_until));
    found.expires_at = Some(time::<D>(shown.expires_at));
    Ok(found)
}

/// A time that the database gave in ticks.
fn time<D: Database>(ticks: i64) -> Timestamp {
    let nanos = u128::from(ticks.unsigned_abs()) * D::TICK.as_nanos();
    Timestamp::from_nanos(if ticks < 0 { 0 } else { u64::try_from(nanos).unwrap_or(u64::MAX) })
}

pub(crate) fn key_value(key: &StorageKey) -> Value<'_> {
    Value::Bytes(key.as_bytes())
}

/// What makes a claim somebody's: 16 random bytes.
fn new_owner() -> Result<[u8; 16], Problem> {
    let mut owner = [0; 16];
    getrandom::fill(&mut owner).map_err(|_| Problem::NoRandomness)?;
    Ok(owner)
}
