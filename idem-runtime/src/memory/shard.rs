//! A part of the keys, and what stands under each: a claim or a record, never both and never half of one.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::in_flight::{InFlight, Turn};
use super::permits::{Account, Permit};
use crate::clock::Timestamp;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::origin::Origin;
use crate::record::Record;
use crate::store::{self, Standing};
use crate::sync::{AsyncMutex, AtomicU64, Mutex, MutexGuard};

/// Tables smaller than this are not worth giving back.
const SMALL: usize = 64;

/// A part of the keys, under one lock. Everything that happens to a key is one step under that lock.
pub(super) struct Shard {
    state: Mutex<State>,
    /// When the first record is over, to be read without the lock.
    soonest: AtomicU64,
}

/// What stands under the keys of a shard.
#[derive(Default)]
pub(super) struct State {
    entries: HashMap<StorageKey, Entry>,
    /// The records of `entries`, soonest over first.
    expiries: BTreeSet<(Timestamp, StorageKey)>,
    next_owner: u64,
}

/// What stands under a key, with the permit that it holds for as long as it stands there.
struct Entry {
    permit: Permit,
    stage: Stage,
}

enum Stage {
    InFlight(InFlight),
    Completed { record: Record, expires_at: Timestamp, replays: u64 },
}

/// What `begin` found.
pub(super) enum Found {
    /// Claimed, by the owner with this token.
    Claimed(u64),
    /// A claim without an owner, now that of the owner with this token.
    Abandoned(u64),
    InFlight(Fingerprint),
    Completed(Record),
    /// Nothing, and no room for anything.
    Full,
}

impl Shard {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), soonest: AtomicU64::new(Timestamp::NEVER.as_nanos()) }
    }

    /// The state is changed in single steps that cannot panic half-way, so a poisoned lock is as good as any.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn soonest(&self) -> Timestamp {
        Timestamp::from_nanos(self.soonest.load(Ordering::Acquire))
    }

    /// To be called by whoever changed the expiries, still under the lock.
    pub(super) fn note_soonest(&self, state: &State) {
        let soonest = state.expiries.first().map_or(Timestamp::NEVER, |(expires_at, _)| *expires_at);
        self.soonest.store(soonest.as_nanos(), Ordering::Release);
    }

    /// Takes up to `most` records away that are over at `now`, and says how many went.
    pub(super) fn reclaim(&self, now: Timestamp, most: usize) -> usize {
        let mut gone = Vec::with_capacity(most);
        let mut state = self.lock();
        state.reclaim(now, most, &mut gone);
        self.note_soonest(&state);
        drop(state);
        // The answers are given back without the lock.
        gone.len()
    }
}

/// What was taken away: its memory is given back when the lock is not held any more. Its permit is already.
pub(super) struct Gone(Stage);

impl State {
    /// One look at `key` for a request with `fingerprint`: claims it for an execution of that origin if it is free and there is
    /// room.
    pub(super) fn begin(
        &mut self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        now: Timestamp,
        account: &Arc<Account>,
        origin: impl FnOnce() -> Option<Origin>,
    ) -> Found {
        if let Some(entry) = self.entries.get_mut(key) {
            match &mut entry.stage {
                Stage::InFlight(claim) if claim.is_abandoned() && claim.fingerprint == *fingerprint => {
                    self.next_owner += 1;
                    claim.take_over(self.next_owner);
                    return Found::Abandoned(self.next_owner);
                }
                Stage::InFlight(claim) => return Found::InFlight(claim.fingerprint),
                Stage::Completed { record, expires_at, replays } if now < *expires_at => {
                    *replays += u64::from(record.fingerprint() == fingerprint);
                    return Found::Completed(record.clone());
                }
                Stage::Completed { .. } => self.remove(key),
            };
        }
        let Some(permit) = account.admit() else { return Found::Full };
        self.next_owner += 1;
        let mut claim = InFlight::new(*fingerprint, self.next_owner);
        claim.origin = origin().map(Box::new);
        self.entries.insert(*key, Entry { permit, stage: Stage::InFlight(claim) });
        Found::Claimed(self.next_owner)
    }

    /// Puts the record in the place of the claim of `owner`; `None` if the claim is not the owner's.
    pub(super) fn complete(
        &mut self,
        key: &StorageKey,
        owner: u64,
        record: Record,
        expires_at: Timestamp,
    ) -> Option<Option<Turn>> {
        let Entry { permit, stage } = self.entries.get_mut(key)?;
        if !matches!(stage, Stage::InFlight(claim) if claim.is_owned_by(owner)) {
            return None;
        }
        let record = if permit.grow(record.bytes().len()) { record } else { record.tombstone() };
        let claim = std::mem::replace(stage, Stage::Completed { record, expires_at, replays: 0 });
        self.expiries.insert((expires_at, *key));
        Some(match claim {
            Stage::InFlight(claim) => claim.into_turn(),
            Stage::Completed { .. } => None,
        })
    }

    /// What stands under `key`, where nothing is changed.
    pub(super) fn inspect(&self, key: &StorageKey, now: Timestamp) -> Option<store::Found> {
        Some(match &self.entries.get(key)?.stage {
            Stage::Completed { expires_at, .. } if *expires_at <= now => return None,
            Stage::Completed { record, expires_at, replays } => {
                let mut found = store::Found::new(Standing::Completed(record.clone()));
                found.expires_at = Some(*expires_at);
                found.replays = Some(*replays);
                found
            }
            Stage::InFlight(claim) => {
                let standing = if claim.is_abandoned() { Standing::Abandoned } else { Standing::InFlight };
                let mut found = store::Found::new(standing(claim.fingerprint));
                found.origin = claim.origin.as_deref().cloned();
                found
            }
        })
    }

    /// The claim that `owner` took over is of an execution of this origin now.
    pub(super) fn inherit(&mut self, key: &StorageKey, owner: u64, origin: Box<Origin>) {
        if let Some(claim) = self.claim_of(key, owner) {
            claim.origin = Some(origin);
        }
    }

    /// Takes the claim of `owner` away; `None` if it is not the owner's.
    pub(super) fn release(&mut self, key: &StorageKey, owner: u64) -> Option<Option<Turn>> {
        self.claim_of(key, owner)?;
        Some(match self.remove(key)?.0 {
            Stage::InFlight(claim) => claim.into_turn(),
            Stage::Completed { .. } => None,
        })
    }

    /// Leaves the claim of `owner` without one.
    pub(super) fn abandon(&mut self, key: &StorageKey, owner: u64) -> Option<Turn> {
        self.claim_of(key, owner)?.abandon()
    }

    /// Takes the record or the abandoned claim under `key` away.
    pub(super) fn forget(&mut self, key: &StorageKey) -> Option<Gone> {
        match &self.entries.get(key)?.stage {
            Stage::InFlight(claim) if !claim.is_abandoned() => None,
            _ => self.remove(key),
        }
    }

    /// What to await for the end of the claim under `key`.
    pub(super) fn ended(&mut self, key: &StorageKey) -> Option<Arc<AsyncMutex<()>>> {
        match &mut self.entries.get_mut(key)?.stage {
            Stage::InFlight(claim) => claim.ended(),
            Stage::Completed { .. } => None,
        }
    }

    /// Takes up to `most` records away that are over at `now`.
    pub(super) fn reclaim(&mut self, now: Timestamp, most: usize, gone: &mut Vec<Gone>) {
        for _ in 0..most {
            let Some((expires_at, key)) = self.expiries.first() else { break };
            if now < *expires_at {
                break;
            }
            let key = *key;
            gone.extend(self.remove(&key));
        }
    }

    /// Claims, and records.
    pub(super) fn len(&self) -> (usize, usize) {
        let completed = self.expiries.len();
        (self.entries.len() - completed, completed)
    }

    fn claim_of(&mut self, key: &StorageKey, owner: u64) -> Option<&mut InFlight> {
        match &mut self.entries.get_mut(key)?.stage {
            Stage::InFlight(claim) if claim.is_owned_by(owner) => Some(claim),
            _ => None,
        }
    }

    /// Takes away whatever stands under `key`, from both collections.
    fn remove(&mut self, key: &StorageKey) -> Option<Gone> {
        let Entry { stage, .. } = self.entries.remove(key)?;
        if let Stage::Completed { expires_at, .. } = stage {
            self.expiries.remove(&(expires_at, *key));
        }
        // A storm leaves a large empty table behind: it is given back when little of it is in use.
        if self.entries.capacity() > SMALL && self.entries.len() * 8 < self.entries.capacity() {
            self.entries.shrink_to(self.entries.len() * 2);
        }
        Some(Gone(stage))
    }
}
