// Mistakes in the store in memory. The build script reads this file, too, so it begins with no documentation of its own.

/// A file of the store, what stands there, and what somebody might have written instead.
pub type Change = (&'static str, &'static str, &'static str);

/// For faults that look at a key, or change it, where the store does not.
const HELPERS: Change = (
    "shard.rs",
    "    /// Claims, and records.\n",
    "    pub(super) fn is_free(&self, key: &StorageKey) -> bool {\n        !self.entries.contains_key(key)\n    }\n\n\
     pub(super) fn put(&mut self, key: &StorageKey, stage: Stage, account: &Arc<Account>) -> Option<()> {\n        \
     self.remove(key);\n        let permit = account.admit()?;\n        if let Stage::Completed { expires_at, .. } = &stage { \
     self.expiries.insert((*expires_at, *key)); }\n        self.entries.insert(*key, Entry { permit, stage });\n        Some(())\n    }\n\n\
     pub(super) fn seize(&mut self, key: &StorageKey, fingerprint: &Fingerprint, account: &Arc<Account>) -> Found {\n        \
     self.next_owner += 1;\n        let claim = Stage::InFlight(InFlight::new(*fingerprint, self.next_owner));\n        \
     match self.put(key, claim, account) { Some(()) => Found::Claimed(self.next_owner), None => Found::Full }\n    }\n\n    \
     /// Claims, and records.\n",
);
const OPEN: Change = ("shard.rs", "\nenum Stage {", "\npub(super) enum Stage {");

/// The faults by name.
pub const FAULTS: &[(&str, &[Change])] = &[
    // `begin` looks, and then claims: two steps.
    (
        "check_then_act",
        &[
            HELPERS,
            OPEN,
            (
                "mod.rs",
                "let found = state.begin(key, fingerprint, now, &shards.account, origin);",
                "let free = state.is_free(key); drop(state); let mut state = shard.lock(); \
                 let found = if free { state.seize(key, fingerprint, &shards.account) } else { state.begin(key, fingerprint, now, &shards.account, origin) };",
            ),
        ],
    ),
    // `complete` takes the claim away before the record is there: for a moment the key is free.
    (
        "claim_goes_before_the_record_comes",
        &[
            HELPERS,
            OPEN,
            (
                "mod.rs",
                "let ended = state.complete(&self.key, self.owner, record, expires_at);",
                "let ended = state.release(&self.key, self.owner); drop(state); let mut state = shard.lock(); \
                 state.put(&self.key, self::shard::Stage::Completed { record, expires_at, replays: 0 }, &self.shards.account);",
            ),
        ],
    ),
    // A claim that is dropped gives its key back.
    ("drop_releases", &[("mod.rs", ".abandon(&self.key, self.owner)", ".release(&self.key, self.owner)")]),
    // The account is read and then written: two steps.
    (
        "counts_in_two_steps",
        &[(
            "permits.rs",
            "    counter\n        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| held.checked_add(amount).filter(|&sum| sum <= max))\n        .is_ok()",
            "    let sum = counter.load(Ordering::Acquire) + amount;\n    if sum <= max { counter.store(sum, Ordering::Release); }\n    sum <= max",
        )],
    ),
    // Where the bytes do not fit, the entry is not given back.
    (
        "a_refusal_costs_an_entry",
        &[(
            "permits.rs",
            "            self.entries.fetch_sub(1, Ordering::AcqRel);\n            return None;",
            "            return None;",
        )],
    ),
    // A completion wakes nobody.
    (
        "wakes_nobody",
        &[(
            "shard.rs",
            "        Some(match claim {\n            Stage::InFlight(claim) => claim.into_turn(),",
            "        Some(match claim {\n            Stage::InFlight(claim) => { std::mem::forget(claim.into_turn()); None }",
        )],
    ),
    // The expiry of a former record stays, and later takes the new record with it.
    (
        "an_old_expiry_stays",
        &[
            (
                "shard.rs",
                "            self.expiries.remove(&(expires_at, *key));\n",
                "            let _ = expires_at;\n",
            ),
            ("mod.rs", "const IN_PASSING: usize = 4;", "const IN_PASSING: usize = 0;"),
        ],
    ),
    // A record is taken away in `reclaim` without a look at the time.
    (
        "reclaims_the_living",
        &[(
            "shard.rs",
            "            if now < *expires_at {\n                break;\n            }\n",
            "            let _ = (now, expires_at);\n",
        )],
    ),
    // The memory of what was taken away keeps its place in the account.
    (
        "what_is_gone_counts",
        &[(
            "shard.rs",
            "let Entry { stage, .. } = self.entries.remove(key)?;",
            "let Entry { stage, permit } = self.entries.remove(key)?;\n        std::mem::forget(permit);",
        )],
    ),
    // What is taken away from a full store is looked for before the key is looked at again, and the claim that came
    // between is overlooked.
    (
        "makes_room_without_a_second_look",
        &[
            HELPERS,
            OPEN,
            (
                "mod.rs",
                "Found::Full if shards.make_room(now) => continue,",
                "Found::Full if shards.make_room(now) => match shard.lock().seize(key, fingerprint, &shards.account) {\n                    \
                 Found::Claimed(owner) => Begin::Claimed(MemoryClaim::new(shards, *key, owner)),\n                    _ => return Err(StoreError::Full),\n                },",
            ),
        ],
    ),
];
