//! Plays a history to a store and compares what it replies with the reference.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idem_runtime::{
    Begin, BeginOptions, Claim, Clock, Fingerprint, KeyState, ManualClock, Record, StorageKey, Store, StoreError,
    Timestamp,
};

use super::steps::KEYS;
use super::{LEASE, Model, RECORD_BYTES, Step, StoreReply};

/// No claim expires in a history: an abandoned one stays.
const OPTIONS: BeginOptions = BeginOptions::new(LEASE, Duration::MAX);

/// The head of a record: version, kind, expiry, and the lengths of execution info and content.
const HEAD_BYTES: usize = 20;
/// What a store keeps of a record without room for its content, if it has no execution info.
const TOMBSTONE_BYTES: usize = HEAD_BYTES;

/// Plays `steps` to a new store. The error names the first step with another reply.
///
/// # Errors
/// What the store replied, and what it should have replied.
pub async fn play<S: Store>(store: S, mut model: Model, steps: &[Step]) -> Result<(), String> {
    let mut driver = StoreDriver::new(store);
    for (index, step) in steps.iter().enumerate() {
        let expected = model.apply(step);
        let reply = driver.apply(step).await.map_err(|error| format!("step {index}, {step:?}: {error}"))?;
        if !expected.allows(reply) && !leaves_out_content(step, expected, reply) {
            return Err(format!("step {index}, {step:?}: the store replied {reply:?}, the reference {expected:?}"));
        }
        // Looking changes nothing, so it may be done between any two steps; one key after the other, to save time.
        let key = u8::try_from(index % usize::from(KEYS)).unwrap_or(0);
        let (shown, expected) = (driver.look(key).await, model.state_of(key));
        match shown.map_err(|error| format!("after step {index}, {step:?}: {error}"))? {
            Some(shown) if shown != expected => {
                return Err(format!(
                    "after step {index}, {step:?}: the store shows {shown:?}, the reference {expected:?}"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether the store reports a record of another fingerprint without its content, as it may.
fn leaves_out_content(step: &Step, expected: StoreReply, reply: StoreReply) -> bool {
    let Step::Begin { fingerprint: asked, .. } = step else { return false };
    matches!(
        (expected, reply),
        (StoreReply::Completed { fingerprint, .. }, StoreReply::Tombstone { fingerprint: other })
            if *asked != fingerprint && other == fingerprint
    )
}

/// A store, with the claims it has granted.
struct StoreDriver<S: Store> {
    store: S,
    clock: ManualClock,
    judge: bool,
    granted: Vec<Option<S::Claim>>,
    fingerprints: Vec<u8>,
}

impl<S: Store> StoreDriver<S> {
    fn new(store: S) -> Self {
        let clock = ManualClock::new();
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let judge = !store.attach(&shared).judges_expiry;
        Self { store, clock, judge, granted: Vec::new(), fingerprints: Vec::new() }
    }

    async fn apply(&mut self, step: &Step) -> Result<StoreReply, StoreError> {
        let ended = match *step {
            Step::Begin { key, fingerprint, new_owner } => return self.begin(key, fingerprint, new_owner).await,
            Step::Forget { key } => return self.store.forget(&storage_key(key)).await.map(StoreReply::Forgot),
            Step::Advance(by) => {
                self.clock.advance(by);
                Ok(())
            }
            Step::Drop { claim } => {
                self.granted[claim] = None;
                Ok(())
            }
            Step::Complete { claim, ttl } => {
                let record = record(self.fingerprints[claim], claim, self.clock.now().after(ttl));
                match self.granted[claim].take() {
                    Some(held) => held.complete(record, ttl).await,
                    None => Err(StoreError::Lost),
                }
            }
            Step::Release { claim } => match self.granted[claim].take() {
                Some(held) => held.release().await,
                None => Err(StoreError::Lost),
            },
            Step::Renew { claim } => match self.granted[claim].as_mut() {
                Some(held) => held.renew(LEASE).await,
                None => Err(StoreError::Lost),
            },
        };
        match ended {
            Ok(()) => Ok(StoreReply::Done),
            Err(StoreError::Lost) => Ok(StoreReply::Lost),
            Err(error) => Err(error),
        }
    }

    /// The state of `key`, or nothing; the outer `None` if the store cannot be inspected.
    async fn look(&self, key: u8) -> Result<Option<Option<StoreReply>>, StoreError> {
        let found = match self.store.inspect(&storage_key(key)).await {
            Err(StoreError::CannotInspect) => return Ok(None),
            found => found?,
        };
        let Some(found) = found else { return Ok(Some(None)) };
        Ok(Some(Some(match found.state {
            KeyState::Abandoned(_) => StoreReply::Abandoned,
            KeyState::InFlight(fingerprint) => StoreReply::InFlight { fingerprint: fingerprint.as_bytes()[0] },
            KeyState::Completed(kept) => {
                let fingerprint = kept.fingerprint().as_bytes()[0];
                if kept.bytes().len() == TOMBSTONE_BYTES {
                    return Ok(Some(Some(StoreReply::Tombstone { fingerprint })));
                }
                let (claim, expires_at) = read(&kept)?;
                if self.judge && expires_at <= self.clock.now() {
                    // As the engine does for a store that leaves expiry to it.
                    return Ok(Some(None));
                }
                StoreReply::Completed { fingerprint, claim }
            }
        })))
    }

    async fn begin(&mut self, key: u8, fingerprint: u8, new_owner: bool) -> Result<StoreReply, StoreError> {
        let number = key;
        let key = storage_key(key);
        loop {
            let (claim, reply) = match self.store.begin(&key, &self::fingerprint(fingerprint), &OPTIONS).await {
                Ok(Begin::Claimed(claim)) => (claim, StoreReply::Claimed),
                Ok(Begin::Abandoned(_)) if !new_owner => return Ok(StoreReply::Abandoned),
                Ok(Begin::Abandoned(mut claim)) => {
                    claim.renew(LEASE).await?;
                    (claim, StoreReply::TookOver)
                }
                Ok(Begin::InFlight(other)) => return Ok(StoreReply::InFlight { fingerprint: other.as_bytes()[0] }),
                // What a tombstone says is the engine's business; that it is one shows in its length.
                Ok(Begin::Completed(kept)) if kept.bytes().len() == TOMBSTONE_BYTES => {
                    let tombstone = StoreReply::Tombstone { fingerprint: kept.fingerprint().as_bytes()[0] };
                    // Of another request's record a store need not return more.
                    let is_own = *kept.fingerprint() == self::fingerprint(fingerprint);
                    let whole = if is_own { None } else { self.look(number).await?.flatten() };
                    return Ok(whole.unwrap_or(tombstone));
                }
                Ok(Begin::Completed(kept)) => {
                    let (claim, expires_at) = read(&kept)?;
                    if self.judge && expires_at <= self.clock.now() {
                        // As the engine does for a store that leaves expiry to it.
                        self.store.forget(&key).await?;
                        continue;
                    }
                    return Ok(StoreReply::Completed { fingerprint: kept.fingerprint().as_bytes()[0], claim });
                }
                Err(StoreError::Full) => return Ok(StoreReply::Full),
                Err(error) => return Err(error),
            };
            self.granted.push(Some(claim));
            self.fingerprints.push(fingerprint);
            return Ok(reply);
        }
    }
}

pub(super) fn storage_key(key: u8) -> StorageKey {
    StorageKey::from_bytes([key; 32])
}

pub(super) fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

/// A record that tells which claim it came from, in the format of the engine: a store makes a tombstone of it that has the
/// same expiry.
fn record(fingerprint: u8, claim: usize, expires_at: Timestamp) -> Record {
    let content = (RECORD_BYTES - HEAD_BYTES) as u64;
    let head = [&[1, 1][..], &expires_at.as_nanos().to_le_bytes(), &[0, 0], &content.to_le_bytes()].concat();
    let mut bytes = [&head[..], &(claim as u64).to_le_bytes()].concat();
    bytes.resize(RECORD_BYTES, 0);
    Record::new(self::fingerprint(fingerprint), bytes.into())
}

fn read(record: &Record) -> Result<(usize, Timestamp), StoreError> {
    let number = |bytes: Bytes| bytes[..].try_into().map(u64::from_le_bytes).map_err(StoreError::unavailable);
    let bytes = record.bytes();
    if bytes.len() != RECORD_BYTES {
        return Err(StoreError::unavailable("the record is not the one that was kept"));
    }
    let claim = usize::try_from(number(bytes.slice(HEAD_BYTES..HEAD_BYTES + 8))?).map_err(StoreError::unavailable)?;
    Ok((claim, Timestamp::from_nanos(number(bytes.slice(2..10))?)))
}
