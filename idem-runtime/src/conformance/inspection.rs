//! What a store says of a key to those who only look. A store that cannot be inspected passes.

use std::time::Duration;

use super::{Attached, LEASE, TTL, content, fingerprint, key, record_of, shown, within};
use crate::attempt::Attempt;
use crate::attempt::Rules;
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::endpoint::Endpoint;
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::store::{Begin, BeginOptions, Claim, KeyState, Store, StoredEntry};

/// Long enough for a slow machine to look before it expires, short enough to wait for.
const SHORT: Duration = Duration::from_millis(400);

fn info(key: &StorageKey, route: &str) -> ExecutionInfo {
    let attempt = Attempt::new(*key, fingerprint("mine"), Rules::DEFAULT).at(Endpoint::new("POST", route));
    ExecutionInfo::start(&attempt, Timestamp::from_nanos(1_700_000_000_000_000_000))
}

impl<S: Store> Attached<S> {
    /// The state of `key`, or nothing; the outer `None` if the store cannot be inspected.
    async fn inspect(&self, key: &StorageKey) -> Option<Option<StoredEntry>> {
        match within("`inspect` returns", self.store.inspect(key)).await {
            Ok(found) => Some(found),
            Err(StoreError::CannotInspect) => None,
            Err(error) => panic!("a store tells the state of a key, but `inspect` gave the error: {error}"),
        }
    }

    async fn begin_from(
        &self,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        lease: Duration,
        info: &ExecutionInfo,
    ) -> Result<Begin<S::Claim>, StoreError> {
        let options = BeginOptions::new(lease, TTL).with_info(info.clone());
        within("`begin` returns", self.store.begin(key, fingerprint, &options)).await
    }

    async fn claim_from(&self, key: &StorageKey, lease: Duration, info: &ExecutionInfo) -> S::Claim {
        match self.begin_from(key, &fingerprint("mine"), lease, info).await {
            Ok(Begin::Claimed(claim)) => claim,
            other => panic!("a free key can be claimed, but `begin` gave {}", shown(&other)),
        }
    }
}

/// To inspect a free key claims nothing, and a claim shows its fingerprint and its info, again and again.
pub async fn inspecting_a_claim_shows_it_and_changes_nothing<S: Store>(store: &Attached<S>) {
    let (key, mine) = (key(), fingerprint("mine"));
    for _ in 0..2 {
        let Some(found) = store.inspect(&key).await else { return };
        assert!(found.is_none(), "a free key has no entry, but `inspect` found {found:?}");
    }
    let from = info(&key, "/mine");
    let mut claim = store.claim_from(&key, LEASE, &from).await;
    for _ in 0..2 {
        let found = store.inspect(&key).await.flatten().expect("a claim is found");
        assert!(matches!(found.state, KeyState::InFlight(found) if found == mine), "{found:?}");
        assert_eq!(found.info.as_ref(), Some(&from), "the info of the claim is kept");
        assert_eq!(found.replays, None, "a claim is not replayed");
    }
    claim.renew(LEASE).await.expect("the owner renews");
    // A request that is refused leaves no trace.
    let other = store.begin_from(&key, &mine, LEASE, &info(&key, "/other")).await;
    assert!(matches!(other, Ok(Begin::InFlight(_))), "a claimed key is in flight");
    let found = store.inspect(&key).await.flatten().expect("a claim is found");
    assert_eq!(found.info.as_ref(), Some(&from), "the info is that of the claim");
    claim.release().await.expect("the owner releases");
    assert!(store.inspect(&key).await.flatten().is_none(), "a released claim is gone");
    // The next claim has nothing of the previous.
    let again = store.claim(&key, &mine).await;
    let found = store.inspect(&key).await.flatten().expect("a claim is found");
    assert_eq!(found.info, None, "a claim of unknown info has none");
    again.release().await.expect("the owner releases");
}

/// A record is shown as it is kept, with the info inside and with its expiry, until it is forgotten.
pub async fn inspecting_a_record_shows_it_as_it_was_kept<S: Store>(store: &Attached<S>) {
    let (key, mine) = (key(), fingerprint("mine"));
    if store.inspect(&key).await.is_none() {
        return;
    }
    let from = info(&key, "/mine");
    let kept = record_of(&mine, b"response", TTL, Some(&from));
    store.claim_from(&key, LEASE, &from).await.complete(kept.clone(), TTL).await.expect("the owner completes");
    for _ in 0..2 {
        let found = store.inspect(&key).await.flatten().expect("a record is found");
        let KeyState::Completed(record) = &found.state else { panic!("not a record, but {found:?}") };
        assert_eq!(
            (record, record.execution_info().as_ref()),
            (&kept, Some(&from)),
            "a record is shown as it was kept"
        );
        assert_eq!(found.lease_until, None, "a record has no lease");
        if let Some(expires_at) = found.expires_at {
            let now = SystemClock::new().now();
            assert!(now < expires_at && expires_at <= now.after(TTL + Duration::from_secs(60)), "a TTL from now");
        }
    }
    let replayed = store.record(&key, &mine).await;
    assert_eq!((content(&replayed).as_deref(), replayed.execution_info()), (Some(&b"response"[..]), Some(from)));
    assert!(store.store.forget(&key).await.expect("`forget` returns"));
    assert!(store.inspect(&key).await.flatten().is_none(), "what is forgotten is not found");
}

/// What has expired is not found. For stores that judge expiry themselves.
pub async fn what_has_expired_is_not_found<S: Store>(store: &Attached<S>) {
    let (key, mine) = (key(), fingerprint("mine"));
    if !store.capabilities.judges_expiry || store.inspect(&key).await.is_none() {
        return;
    }
    let earliest = SystemClock::new().now().after(SHORT);
    let claim = store.claim(&key, &mine).await;
    claim.complete(record_of(&mine, b"response", SHORT, None), SHORT).await.expect("the owner completes");
    within("the record has expired", async {
        while store.inspect(&key).await.flatten().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(SystemClock::new().now() >= earliest, "the record was gone before its TTL");
    let from = info(&key, "/later");
    let claim = store.claim_from(&key, LEASE, &from).await;
    let found = store.inspect(&key).await.flatten().expect("the claim is there");
    assert_eq!(found.info.as_ref(), Some(&from), "nothing is left of what has expired");
    drop(claim);
}

/// A claim whose owner is gone is shown as abandoned when it is, with its info; the new owner has its own.
pub async fn an_abandoned_claim_keeps_its_info_until_it_is_taken_over<S: Store>(store: &Attached<S>) {
    const BRIEF: Duration = Duration::from_millis(100);
    let (key, mine) = (key(), fingerprint("mine"));
    if store.inspect(&key).await.is_none() {
        return;
    }
    let (from, new_owners) = (info(&key, "/mine"), info(&key, "/new_owner"));
    drop(store.claim_from(&key, BRIEF, &from).await);
    let abandoned = tokio::time::timeout(BRIEF * 20, async {
        loop {
            let found = store.inspect(&key).await.flatten().expect("a dropped claim stays");
            assert_eq!(found.info.as_ref(), Some(&from), "the info stays");
            match found.state {
                KeyState::Abandoned(found) => break assert_eq!(found, mine),
                KeyState::InFlight(found) => assert_eq!(found, mine),
                KeyState::Completed(record) => panic!("it was not completed, but there is {record:?}"),
            }
            tokio::time::sleep(BRIEF / 10).await;
        }
    });
    if abandoned.await.is_err() {
        // A store may keep a claim in flight for ever.
        return;
    }
    match store.begin_from(&key, &mine, LEASE, &new_owners).await {
        Ok(Begin::Abandoned(claim)) => drop(claim),
        begun => panic!("what `inspect` calls abandoned is so, but `begin` gave {}", shown(&begun)),
    }
    let found = store.inspect(&key).await.flatten().expect("the claim stays");
    assert!(matches!(found.state, KeyState::Abandoned(_)), "a new owner that goes away changes nothing: {found:?}");
    assert_eq!(found.info.as_ref(), Some(&from), "a new owner that goes away changes nothing");
    let Ok(Begin::Abandoned(mut new_owner)) = store.begin_from(&key, &mine, LEASE, &new_owners).await else {
        panic!("an abandoned claim can be taken over")
    };
    // Until after the claim of the previous owner would have expired.
    new_owner.renew(2 * TTL).await.expect("the first new owner takes the claim over");
    let found = store.inspect(&key).await.flatten().expect("the claim stays");
    assert!(matches!(found.state, KeyState::InFlight(found) if found == mine), "{found:?}");
    if let (Some(lease_until), Some(expires_at)) = (found.lease_until, found.expires_at) {
        assert!(lease_until <= expires_at, "a claim stays for its whole lease: {found:?}");
    }
    assert_eq!(
        found.info.as_ref(),
        Some(&new_owners),
        "`renew` takes the claim over, so the claim has the info of its new owner's `begin`"
    );
    new_owner.release().await.expect("the new owner releases");
}

/// Every abandoned claim is on one of the pages, with its info. A claim with an owner, a record and a free key are on none. For
/// stores that list them.
pub async fn unknown_outcomes_are_listed_and_nothing_else<S: Store>(store: &Attached<S>) {
    const BRIEF: Duration = Duration::from_millis(100);
    if matches!(store.store.inspect_unknown(None).await, Err(StoreError::CannotInspect)) {
        return;
    }
    let (abandoned, in_flight, recorded) = ([(); 3].map(|()| key()), key(), key());
    let infos = abandoned.map(|key| info(&key, "/mine"));
    // Its lease has expired by then as well.
    let record = record_of(&fingerprint("mine"), b"response", TTL, None);
    store.claim_from(&recorded, BRIEF, &info(&recorded, "/mine")).await.complete(record, TTL).await.expect("completes");
    for (key, info) in abandoned.iter().zip(&infos) {
        drop(store.claim_from(key, BRIEF, info).await);
    }
    let owned = store.claim_from(&in_flight, LEASE, &info(&in_flight, "/mine")).await;
    let listed = within("abandoned claims are listed", async {
        loop {
            let (mut listed, mut from) = (Vec::new(), None);
            loop {
                let page = store.store.inspect_unknown(from.as_ref()).await.expect("a store lists unknown outcomes");
                listed.extend(page.keys);
                from = page.next;
                if from.is_none() {
                    break;
                }
            }
            if abandoned.iter().all(|key| listed.iter().any(|(listed, _)| listed == key)) {
                break listed;
            }
            tokio::time::sleep(BRIEF / 10).await;
        }
    })
    .await;
    for (key, entry) in &listed {
        assert!(matches!(entry.state, KeyState::Abandoned(_)), "its outcome is not unknown: {entry:?}");
        assert!(*key != in_flight && *key != recorded, "its outcome is known: {entry:?}");
        if let Some(at) = abandoned.iter().position(|abandoned| abandoned == key) {
            assert_eq!(entry.info.as_ref(), Some(&infos[at]), "the info of the claim is listed");
        }
    }
    owned.release().await.expect("the owner releases");
}

/// A claim that was revoked is abandoned at once, with its info. Its owner can neither renew, complete nor release it, and a new owner
/// can take it over. For stores that revoke claims.
pub async fn a_revoked_claim_is_abandoned_and_its_owner_changes_nothing<S: Store>(store: &Attached<S>) {
    let (key, mine) = (key(), fingerprint("mine"));
    match store.store.revoke(&key).await {
        Err(StoreError::CannotRevoke) => return,
        revoked => assert!(matches!(revoked, Ok(false)), "a free key has no claim: {revoked:?}"),
    }
    let from = info(&key, "/mine");
    let mut owner = store.claim_from(&key, LEASE, &from).await;
    let clone = owner.try_clone();
    assert!(store.store.revoke(&key).await.expect("a claim is revoked"));
    assert!(!store.store.revoke(&key).await.expect("an abandoned claim stays"), "it has no owner to lose");
    if let Some(found) = store.inspect(&key).await {
        let found = found.expect("a revoked claim stays");
        assert!(matches!(found.state, KeyState::Abandoned(found) if found == mine), "{found:?}");
        assert_eq!(found.info.as_ref(), Some(&from), "the info stays");
    }
    let lost = |result: Result<(), StoreError>| assert!(matches!(result, Err(StoreError::Lost)), "{result:?}");
    lost(owner.renew(LEASE).await);
    let new_info = info(&key, "/new_owner");
    let Ok(Begin::Abandoned(mut new_owner)) = store.begin_from(&key, &mine, LEASE, &new_info).await else {
        panic!("a revoked claim can be taken over")
    };
    lost(owner.complete(record_of(&mine, b"late", TTL, Some(&from)), TTL).await);
    new_owner.renew(LEASE).await.expect("the new owner takes the claim over");
    if let Some(clone) = clone {
        lost(clone.release().await);
    }
    let record = record_of(&mine, b"settled", TTL, Some(&from));
    new_owner.complete(record, TTL).await.expect("the new owner completes");
    assert!(!store.store.revoke(&key).await.expect("a record is no claim"), "a record is no claim");
    assert_eq!(content(&store.record(&key, &mine).await).as_deref(), Some(&b"settled"[..]));
}
