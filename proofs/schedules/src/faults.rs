// Mistakes in the store in memory. The build script reads this file, too, so it begins with no documentation.

/// A file of the store, what it says, and what its author might have written instead.
pub type Change = (&'static str, &'static str, &'static str);

/// The faults by name.
pub const FAULTS: &[(&str, &[Change])] = &[
    // `begin` looks, and then claims: two steps.
    (
        "check_then_act",
        &[(
            "mod.rs",
            "            if let Some(permit) = shared.quota.admit() {\n",
            "            drop(claims);\n            let mut claims = shard.claims.lock();\n            \
             if let Some(permit) = shared.quota.admit() {\n",
        )],
    ),
    // `complete` removes the claim before the record is there: for a moment the key is free.
    (
        "claim_goes_before_the_record_comes",
        &[(
            "claims.rs",
            "        first(shard);\n        let slot = claims.remove(&self.key);\n        drop(claims);\n",
            "        let slot = claims.remove(&self.key);\n        drop(claims);\n        first(shard);\n",
        )],
    ),
    // A claim that is dropped releases its key.
    (
        "drop_releases",
        &[(
            "claims.rs",
            ".get_mut(&self.key).and_then(|slot| slot.waiters.take());",
            ".remove(&self.key).and_then(|slot| slot.waiters);",
        )],
    ),
    // The quota is read and then written: two steps.
    (
        "counts_in_two_steps",
        &[(
            "quota.rs",
            "    counter\n        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| held.checked_add(amount).filter(|&sum| sum <= max))\n        .is_ok()",
            "    let sum = counter.load(Ordering::Acquire) + amount;\n    if sum <= max { counter.store(sum, Ordering::Release); }\n    sum <= max",
        )],
    ),
    // If the bytes do not fit, the entry is not released.
    (
        "a_refusal_costs_an_entry",
        &[(
            "quota.rs",
            "            self.entries.fetch_sub(1, Ordering::AcqRel);\n            return None;",
            "            return None;",
        )],
    ),
    // The end of a claim wakes no waiter.
    ("end_wakes_no_one", &[("claims.rs", "            slot.wake();\n", "            drop(slot);\n")]),
    // A claim that is dropped wakes no waiter.
    (
        "drop_wakes_no_one",
        &[(
            "claims.rs",
            "        wake(waiters);\n    }\n}\n\nimpl fmt::Debug",
            "        drop(waiters);\n    }\n}\n\nimpl fmt::Debug",
        )],
    ),
    // `forget` trusts that the previous owner has woken the waiters.
    ("forget_wakes_no_one", &[("mod.rs", "forgotten.map(ClaimSlot::wake).is_some()", "forgotten.is_some()")]),
    // A waiter looks for the claim, and then listens: two steps.
    (
        "listens_too_late",
        &[
            ("claims.rs", "-> Option<OwnedNotified> {", "-> Option<Arc<Notify>> {"),
            ("claims.rs", "get_or_insert_default()).notified_owned())", "get_or_insert_default()))"),
            ("mod.rs", "            ended.await;\n", "            ended.notified_owned().await;\n"),
        ],
    ),
    // Waiters are woken while the claim is still owned.
    (
        "wakes_before_the_claim_is_free",
        &[("claims.rs", "        drop(ownership);\n        let waiters =", "        let waiters =")],
    ),
    // A sweep removes what it finds under the key, although another record may be there by now.
    (
        "sweeps_without_a_second_look",
        &[("records.rs", "let expired = self.remove_expired(&key, now);", "let expired = self.remove(&key);")],
    ),
    // A sweep removes records without a look at the time.
    (
        "sweeps_the_living",
        &[
            (
                "records.rs",
                "                Some(expires_at) if expires_at <= now => {\n",
                "                Some(_) => {\n",
            ),
            ("records.rs", "if expires_at <= now { self.remove(key) } else { None }", "self.remove(key)"),
        ],
    ),
    // What a sweep removes still counts.
    (
        "what_is_swept_counts",
        &[(
            "records.rs",
            "swept.removed += usize::from(expired.is_some());",
            "swept.removed += usize::from(expired.is_some());\n                    std::mem::forget(expired);",
        )],
    ),
    // What a release frees still counts.
    (
        "what_is_released_counts",
        &[("claims.rs", "        drop(owner);\n        wake", "        std::mem::forget(owner);\n        wake")],
    ),
    // A sweep that begins between the two steps resets the time of a record that it does not see.
    (
        "notes_the_time_before_the_record_comes",
        &[
            (
                "records.rs",
                "        drop(self.remove(&key));\n",
                "        drop(self.remove(&key));\n        self.note(expires_at);\n",
            ),
            (
                "records.rs",
                "and one that began earlier gets its time.\n        self.note(expires_at);\n",
                "and one that began earlier gets its time.\n",
            ),
        ],
    ),
    // After room was made, the key is claimed without another look, and a claim that came between is overwritten.
    (
        "makes_room_without_a_second_look",
        &[(
            "mod.rs",
            "                return Err(StoreError::Full);\n            }\n",
            "                return Err(StoreError::Full);\n            }\n            \
             if let Some(permit) = shared.quota.admit() {\n                \
             let ownership = shard.claims.lock().insert(*key, *fingerprint, None, permit);\n                \
             return Ok(Begin::Claimed(MemoryClaim::new(shared, *key, ownership, None)));\n            }\n",
        )],
    ),
];
