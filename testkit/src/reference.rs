//! The reference: what a store must reply to any sequence of calls, in a plain map. It serves every store, and the engine.

use std::collections::HashMap;
use std::time::Duration;

pub mod drive;
pub mod engine;
pub mod steps;

/// The lease of every claim in a history.
pub const LEASE: Duration = Duration::from_secs(30);

/// What a key costs the store in memory apart from its response.
pub const KEY_BYTES: usize = 640;
/// The length of every record in a history: what is read of it, and as much as the info of an execution takes that names no
/// endpoint.
pub const RECORD_BYTES: usize = 28 + 30;

/// For how long a store keeps a claim alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claims {
    /// As long as its owner; dropped, it is abandoned at once. A store in this process.
    LiveWithOwner,
    /// As long as its lease, whether the owner is there or not. A remote store.
    LiveForLease,
}

/// What the reference must know of a store.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// For how long its claims live.
    pub claims: Claims,
    /// How many keys fit in.
    pub capacity: usize,
    /// For how many bytes there is room: [`KEY_BYTES`] for each key, [`RECORD_BYTES`] for each response. `None` if there
    /// is always room. Exact in histories in which no record expires: one that has expired still counts until it is
    /// taken away, and when, no caller can tell.
    pub bytes: Option<usize>,
}

/// One call. Keys and fingerprints are small numbers; a claim is named by the number of the grant that made it.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the words of the store")]
pub enum Step {
    Begin { key: u8, fingerprint: u8, new_owner: bool },
    Complete { claim: usize, ttl: Duration },
    Release { claim: usize },
    Drop { claim: usize },
    Renew { claim: usize },
    Forget { key: u8 },
    Advance(Duration),
}

/// What the store replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words of the store")]
pub enum StoreReply {
    Claimed,
    /// The claim had no owner, and the new owner has it now.
    TookOver,
    /// The claim had no owner, and was left as it was.
    Abandoned,
    InFlight {
        fingerprint: u8,
    },
    /// The record that the completion of this claim left.
    Completed {
        fingerprint: u8,
        claim: usize,
    },
    /// The record of a completion for whose response there was no room.
    Tombstone {
        fingerprint: u8,
    },
    Full,
    Done,
    Lost,
    Forgot(bool),
    /// Only the reference replies this: the record has expired, and no caller can tell whether its remains are still there.
    ForgotOrNot,
}

impl StoreReply {
    /// Whether a store may reply `reply` if this is the reply of the reference.
    pub fn allows(self, reply: Self) -> bool {
        match self {
            Self::ForgotOrNot => matches!(reply, Self::Forgot(_)),
            _ => self == reply,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    Claim { fingerprint: u8, owner: Option<usize>, until: Duration },
    Record { fingerprint: u8, claim: usize, until: Duration, whole: bool },
}

/// The reference model of a store.
#[derive(Clone, Debug)]
pub struct Model {
    profile: Profile,
    now: Duration,
    entries: HashMap<u8, Entry>,
    /// The key of each claim that was ever granted, until its owner has ended or dropped it.
    granted: Vec<Option<u8>>,
}

impl Model {
    /// An empty store.
    pub fn new(profile: Profile) -> Self {
        Self { profile, now: Duration::ZERO, entries: HashMap::new(), granted: Vec::new() }
    }

    /// The claims whose owner still has them.
    pub fn held(&self) -> Vec<usize> {
        (0..self.granted.len()).filter(|&claim| self.granted[claim].is_some()).collect()
    }

    /// How many claims were ever granted.
    pub fn granted(&self) -> usize {
        self.granted.len()
    }

    /// What a store must reply.
    pub fn apply(&mut self, step: &Step) -> StoreReply {
        match *step {
            Step::Begin { key, fingerprint, new_owner } => self.begin(key, fingerprint, new_owner),
            Step::Complete { claim, ttl } => match self.granted[claim].take() {
                Some(key) if self.owns(key, claim) => {
                    let Some(Entry::Claim { fingerprint, .. }) = self.entries.get(&key).copied() else {
                        return StoreReply::Lost;
                    };
                    self.entries.insert(
                        key,
                        Entry::Record { fingerprint, claim, until: self.now + ttl, whole: self.has_room(RECORD_BYTES) },
                    );
                    StoreReply::Done
                }
                _ => StoreReply::Lost,
            },
            Step::Release { claim } => match self.granted[claim].take() {
                Some(key) if self.owns(key, claim) => {
                    self.entries.remove(&key);
                    StoreReply::Done
                }
                _ => StoreReply::Lost,
            },
            Step::Drop { claim } => {
                if let Some(Entry::Claim { owner, .. }) =
                    self.granted[claim].take().and_then(|key| self.entries.get_mut(&key))
                    && *owner == Some(claim)
                {
                    *owner = None;
                }
                StoreReply::Done
            }
            Step::Renew { claim } => match self.granted[claim] {
                Some(key) if self.owns(key, claim) => self.hold(key, claim),
                _ => StoreReply::Lost,
            },
            Step::Forget { key } => match self.entries.get(&key) {
                None => StoreReply::Forgot(false),
                Some(Entry::Claim { .. }) if !self.abandoned(key) => StoreReply::Forgot(false),
                Some(Entry::Record { until, .. }) if *until <= self.now => {
                    self.entries.remove(&key);
                    StoreReply::ForgotOrNot
                }
                Some(_) => StoreReply::Forgot(self.entries.remove(&key).is_some()),
            },
            Step::Advance(by) => {
                self.now += by;
                StoreReply::Done
            }
        }
    }

    /// What a store must show of `key` to a caller that only looks; `None` if it is free.
    pub fn state_of(&self, key: u8) -> Option<StoreReply> {
        Some(match *self.entries.get(&key)? {
            Entry::Claim { .. } if self.abandoned(key) => StoreReply::Abandoned,
            Entry::Claim { fingerprint, .. } => StoreReply::InFlight { fingerprint },
            Entry::Record { until, .. } if until <= self.now => return None,
            Entry::Record { fingerprint, claim, whole: true, .. } => StoreReply::Completed { fingerprint, claim },
            Entry::Record { fingerprint, .. } => StoreReply::Tombstone { fingerprint },
        })
    }

    fn begin(&mut self, key: u8, fingerprint: u8, new_owner: bool) -> StoreReply {
        match self.entries.get(&key).copied() {
            Some(Entry::Claim { fingerprint: other, .. }) if other != fingerprint || !self.abandoned(key) => {
                return StoreReply::InFlight { fingerprint: other };
            }
            Some(Entry::Claim { .. }) if !new_owner => return StoreReply::Abandoned,
            Some(Entry::Claim { .. }) => {
                self.granted.push(Some(key));
                self.hold(key, self.granted.len() - 1);
                return StoreReply::TookOver;
            }
            Some(Entry::Record { fingerprint, claim, until, whole }) if self.now < until => {
                return if whole {
                    StoreReply::Completed { fingerprint, claim }
                } else {
                    StoreReply::Tombstone { fingerprint }
                };
            }
            _ => {}
        }
        let now = self.now;
        let over = |entry: &Entry| matches!(entry, Entry::Record { until, .. } if *until <= now);
        if self.entries.values().filter(|entry| !over(entry)).count() >= self.profile.capacity
            || !self.has_room(KEY_BYTES)
        {
            return StoreReply::Full;
        }
        self.granted.push(Some(key));
        let claim = Entry::Claim { fingerprint, owner: Some(self.granted.len() - 1), until: now + LEASE };
        self.entries.insert(key, claim);
        StoreReply::Claimed
    }

    fn has_room(&self, bytes: usize) -> bool {
        let used = self.entries.values().map(|entry| match entry {
            Entry::Record { until, .. } if *until <= self.now => 0,
            Entry::Record { whole: true, .. } => KEY_BYTES + RECORD_BYTES,
            _ => KEY_BYTES,
        });
        self.profile.bytes.is_none_or(|most| used.sum::<usize>() + bytes <= most)
    }

    fn owns(&self, key: u8, claim: usize) -> bool {
        matches!(self.entries.get(&key), Some(Entry::Claim { owner, .. }) if *owner == Some(claim))
    }

    fn hold(&mut self, key: u8, claim: usize) -> StoreReply {
        if let Some(Entry::Claim { owner, until, .. }) = self.entries.get_mut(&key) {
            (*owner, *until) = (Some(claim), self.now + LEASE);
        }
        StoreReply::Done
    }

    fn abandoned(&self, key: u8) -> bool {
        match (self.entries.get(&key), self.profile.claims) {
            (Some(Entry::Claim { owner, .. }), Claims::LiveWithOwner) => owner.is_none(),
            (Some(Entry::Claim { until, .. }), Claims::LiveForLease) => *until <= self.now,
            _ => false,
        }
    }
}
