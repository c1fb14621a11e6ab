//! What a store must do with claims.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::{Attached, LEASE, MAX_WAIT, TTL, content, fingerprint, key, options, record, shown, within};
use crate::error::StoreError;
use crate::fingerprint::Fingerprint;
use crate::key::StorageKey;
use crate::store::{Begin, BeginOptions, Claim, Store};

/// `begin` is one atomic step: of many concurrent calls, one gets the claim and the others learn of it.
pub async fn one_of_many_concurrent_begins_claims<S: Store>(store: &Attached<S>) {
    const CALLERS: usize = 32;
    for _ in 0..20 {
        let (key, mine) = (key(), fingerprint("one"));
        let together = Arc::new(Barrier::new(CALLERS));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (store, together) = (Arc::clone(&store.store), Arc::clone(&together));
            callers.spawn(async move {
                together.wait().await;
                store.begin(&key, &mine, &options()).await
            });
        }
        let mut claims = Vec::new();
        while let Some(begun) = within("`begin` returns to all callers", callers.join_next()).await {
            match begun.expect("no panic") {
                Ok(Begin::Claimed(claim)) => claims.push(claim),
                Ok(Begin::InFlight(other)) => assert_eq!(other, mine, "the fingerprint of the claim is reported"),
                other => panic!("one call claims and the others find it in flight, but one got {}", shown(&other)),
            }
        }
        assert_eq!(claims.len(), 1, "of many concurrent `begin`s exactly one claims");
    }
}

/// A key in flight is in flight whatever the fingerprint, and reports the fingerprint of its claim.
pub async fn a_claimed_key_is_in_flight_for_everyone_else<S: Store>(store: &Attached<S>) {
    let (key, mine, other) = (key(), fingerprint("mine"), fingerprint("other"));
    let _claim = store.claim(&key, &mine).await;
    for asked in [mine, other, mine] {
        match store.begin(&key, &asked).await {
            Ok(Begin::InFlight(found)) => assert_eq!(found, mine, "the fingerprint of the claim is reported"),
            begun => panic!("a claimed key is in flight, but `begin` gave {}", shown(&begun)),
        }
    }
}

/// A completed claim leaves its record, again and again. A request with another fingerprint learns whose it is, and may get it without
/// its content.
pub async fn a_completed_claim_leaves_its_record<S: Store>(store: &Attached<S>) {
    let (key, mine, other) = (key(), fingerprint("mine"), fingerprint("other"));
    let kept = record(&mine, b"response", TTL);
    store.claim(&key, &mine).await.complete(kept.clone(), TTL).await.expect("the owner completes");
    for asked in [mine, other, mine] {
        let found = store.record(&key, &asked).await;
        assert_eq!(found.fingerprint(), &mine, "a record comes back with its fingerprint");
        assert!(found == kept || asked == other, "a record comes back as it was recorded: {found:?} is not {kept:?}");
    }
}

/// A released claim leaves nothing: the key is free for any fingerprint.
pub async fn a_released_claim_leaves_nothing<S: Store>(store: &Attached<S>) {
    let key = key();
    store.claim(&key, &fingerprint("first")).await.release().await.expect("the owner releases");
    let again = store.claim(&key, &fingerprint("second")).await;
    again.release().await.expect("the owner releases");
}

/// A claim that is dropped is never free again by itself: its handler may have run.
pub async fn a_dropped_claim_is_abandoned_and_not_free<S: Store>(store: &Attached<S>) {
    let (key, mine) = (key(), fingerprint("mine"));
    drop(store.claim(&key, &mine).await);
    // Abandoned at once, or in flight until its lease has expired: both refuse. Twice, since looking must not change it.
    for _ in 0..2 {
        match store.begin(&key, &mine).await {
            Ok(Begin::Abandoned(claim)) => drop(claim),
            Ok(Begin::InFlight(found)) => assert_eq!(found, mine),
            begun => panic!("a dropped claim stays, but `begin` gave {}", shown(&begun)),
        }
    }
}

/// An abandoned claim with another fingerprint is reported in flight with its own, and cannot be taken over.
///
/// Passes if the store keeps a claim for ever.
pub async fn an_abandoned_claim_is_in_flight_for_another_fingerprint<S: Store>(store: &Attached<S>) {
    let (key, mine) = (key(), fingerprint("mine"));
    drop(brief_claim(store, &key, &mine).await);
    if found_abandoned(store, &key, &mine).await.is_none() {
        return;
    }
    match store.begin(&key, &fingerprint("other")).await {
        Ok(Begin::InFlight(found)) => assert_eq!(found, mine, "the fingerprint of the claim is reported"),
        begun => panic!("another fingerprint cannot have an abandoned claim, but `begin` gave {}", shown(&begun)),
    }
}

/// Of those who find a claim abandoned, one at most takes it over, and then it is the owner.
///
/// Passes if the store keeps a claim for ever.
pub async fn an_abandoned_claim_can_be_taken_over_once<S: Store>(store: &Attached<S>) {
    let (key, mine) = (key(), fingerprint("mine"));
    drop(brief_claim(store, &key, &mine).await);
    let Some(mut new_owner) = found_abandoned(store, &key, &mine).await else { return };
    // A store may report it to one request at a time.
    let late = match store.begin(&key, &mine).await {
        Ok(Begin::Abandoned(claim)) => Some(claim),
        Ok(Begin::InFlight(_)) => None,
        begun => panic!("a claim is abandoned until it is taken over, but `begin` gave {}", shown(&begun)),
    };
    new_owner.renew(LEASE).await.expect("the first new owner takes the claim over");
    if let Some(mut late) = late {
        let renewed = late.renew(LEASE).await;
        assert!(matches!(renewed, Err(StoreError::Lost)), "a claim was taken over twice: {renewed:?}");
    }
    assert!(matches!(store.begin(&key, &mine).await, Ok(Begin::InFlight(_))), "it is in flight now");
    new_owner.complete(record(&mine, b"new_owner", TTL), TTL).await.expect("the new owner completes");
    assert_eq!(content(&store.record(&key, &mine).await).as_deref(), Some(&b"new_owner"[..]));
}

/// The lease of a claim that is to be abandoned.
const BRIEF: Duration = Duration::from_millis(200);

/// Claims `key` for a moment.
async fn brief_claim<S: Store>(store: &Attached<S>, key: &StorageKey, mine: &Fingerprint) -> S::Claim {
    match within("`begin` returns", store.store.begin(key, mine, &BeginOptions::new(BRIEF, TTL))).await {
        Ok(Begin::Claimed(claim)) => claim,
        begun => panic!("a free key can be claimed, but `begin` gave {}", shown(&begun)),
    }
}

/// Returns the claim of a request that has found a [brief one](brief_claim) abandoned. `None` if that does not happen.
async fn found_abandoned<S: Store>(store: &Attached<S>, key: &StorageKey, mine: &Fingerprint) -> Option<S::Claim> {
    let abandoned = tokio::time::timeout(BRIEF * 10, async {
        loop {
            match store.begin(key, mine).await {
                Ok(Begin::Abandoned(claim)) => break claim,
                Ok(Begin::InFlight(_)) => tokio::time::sleep(BRIEF / 10).await,
                begun => panic!("a claim whose lease has expired is abandoned, but `begin` gave {}", shown(&begun)),
            }
        }
    });
    abandoned.await.ok()
}

/// Claims `key` for a moment, and returns the claim, and that of a request that has found it abandoned. `None` if the store keeps a claim
/// for as long as its owner lives, or for ever.
async fn abandoned<S: Store>(
    store: &Attached<S>,
    key: &StorageKey,
    mine: &Fingerprint,
) -> Option<(S::Claim, S::Claim)> {
    let previous = brief_claim(store, key, mine).await;
    Some((previous, found_abandoned(store, key, mine).await?))
}

/// When a lease has expired and a new owner has taken the claim over, the previous owner changes nothing any more.
///
/// Passes if the store keeps a claim for as long as its owner lives, or for ever.
pub async fn a_previous_owner_changes_nothing<S: Store>(store: &Attached<S>) {
    for (how, has_ended) in [(0, false), (1, false), (2, false), (0, true), (1, true), (2, true)] {
        let (key, mine) = (key(), fingerprint("mine"));
        let Some((mut previous, mut new_owner)) = abandoned(store, &key, &mine).await else { return };
        new_owner.renew(LEASE).await.expect("the first new owner takes the claim over");
        let complete = async |owner: S::Claim| {
            owner.complete(record(&mine, b"new_owner", TTL), TTL).await.expect("the new owner completes");
        };
        let new_owner = if has_ended {
            complete(new_owner).await;
            None
        } else {
            Some(new_owner)
        };
        let done = match how {
            0 => previous.complete(record(&mine, b"previous", TTL), TTL).await,
            1 => previous.release().await,
            _ => previous.renew(LEASE).await,
        };
        assert!(
            matches!(done, Err(StoreError::Lost)),
            "a previous owner changed a claim that was taken over: {done:?}"
        );
        if let Some(new_owner) = new_owner {
            assert!(matches!(store.begin(&key, &mine).await, Ok(Begin::InFlight(_))), "the claim is the new owner's");
            complete(new_owner).await;
        }
        assert_eq!(content(&store.record(&key, &mine).await).as_deref(), Some(&b"new_owner"[..]));
    }
}

/// A request that is late to take an abandoned claim over leaves what the first new owner has left: its record, or a free key.
///
/// Passes if the store keeps a claim for as long as its owner lives, or for ever.
pub async fn a_new_owner_that_is_late_changes_nothing<S: Store>(store: &Attached<S>) {
    // The key of a record may have less time left than that of an abandoned claim.
    let ttl = TTL / 2;
    for completes in [true, false] {
        let (key, mine) = (key(), fingerprint("mine"));
        let Some((previous, mut first)) = abandoned(store, &key, &mine).await else { return };
        drop(previous);
        let mut late = match store.begin(&key, &mine).await {
            Ok(Begin::Abandoned(claim)) => claim,
            begun => panic!("a claim is abandoned until it is taken over, but `begin` gave {}", shown(&begun)),
        };
        first.renew(LEASE).await.expect("the first new owner takes the claim over");
        if completes {
            first.complete(record(&mine, b"first", ttl), ttl).await.expect("the first new owner completes");
        } else {
            first.release().await.expect("the first new owner releases");
        }
        let renewed = late.renew(LEASE).await;
        assert!(matches!(renewed, Err(StoreError::Lost)), "a late request took over what has ended: {renewed:?}");
        drop(late);
        if completes {
            assert_eq!(content(&store.record(&key, &mine).await).as_deref(), Some(&b"first"[..]));
        } else {
            assert!(matches!(store.begin(&key, &mine).await, Ok(Begin::Claimed(_))), "the key is free");
        }
    }
}

/// Of many who take an abandoned claim over at the same time, one succeeds.
///
/// Passes if the store keeps a claim for ever.
pub async fn of_many_new_owners_one_takes_over<S: Store>(store: &Attached<S>) {
    const NEW_OWNERS: usize = 16;
    let (key, mine) = (key(), fingerprint("mine"));
    drop(brief_claim(store, &key, &mine).await);
    // One that is dropped leaves the claim as it is.
    if found_abandoned(store, &key, &mine).await.is_none() {
        return;
    }
    let together = Arc::new(Barrier::new(NEW_OWNERS));
    let mut new_owners = JoinSet::new();
    for _ in 0..NEW_OWNERS {
        let (store, together) = (Arc::clone(&store.store), Arc::clone(&together));
        new_owners.spawn(async move {
            together.wait().await;
            let begun = store.begin(&key, &mine, &options()).await;
            together.wait().await;
            match begun {
                Ok(Begin::Abandoned(mut claim)) => match claim.renew(LEASE).await {
                    Ok(()) => Some(claim),
                    Err(StoreError::Lost) => None,
                    Err(error) => panic!("a new owner takes over or has lost, but `renew` gave: {error}"),
                },
                Ok(Begin::InFlight(_)) => None,
                begun => panic!("a dropped claim stays, but `begin` gave {}", shown(&begun)),
            }
        });
    }
    let mut owners = Vec::new();
    while let Some(new_owner) = within("`begin` returns to all new owners", new_owners.join_next()).await {
        owners.extend(new_owner.expect("no panic"));
    }
    assert_eq!(owners.len(), 1, "of many new owners exactly one takes a claim over");
}

/// An owner that renews or completes its claim after the lease has expired, and before another request takes it over, keeps it.
///
/// Passes if the store keeps a claim for as long as its owner lives, or for ever, and if such an owner has lost it.
pub async fn an_owner_that_is_only_late_keeps_its_claim<S: Store>(store: &Attached<S>) {
    for completes in [false, true] {
        let (key, mine) = (key(), fingerprint("mine"));
        let Some((mut owner, mut late)) = abandoned(store, &key, &mine).await else { return };
        let complete = async |owner: S::Claim| owner.complete(record(&mine, b"response", TTL), TTL).await;
        let owner = if completes {
            if complete(owner).await.is_err() {
                return;
            }
            None
        } else {
            if owner.renew(LEASE).await.is_err() {
                return;
            }
            Some(owner)
        };
        let renewed = late.renew(LEASE).await;
        assert!(
            matches!(renewed, Err(StoreError::Lost)),
            "a claim was taken over that its owner has kept: {renewed:?}"
        );
        drop(late);
        if let Some(owner) = owner {
            complete(owner).await.expect("the owner completes");
        }
        assert_eq!(content(&store.record(&key, &mine).await).as_deref(), Some(&b"response"[..]));
    }
}

/// A claim is in flight until its lease has expired, and abandoned then, also if the TTL is shorter than the lease. It is not free:
/// its owner may be cut off from the store and still run the handler.
///
/// Passes if the store keeps a claim for as long as its owner lives, or for ever.
pub async fn a_claim_outlives_its_lease_even_if_the_ttl_is_shorter<S: Store>(store: &Attached<S>) {
    const SHORT: Duration = Duration::from_millis(500);
    const SHORTER: Duration = Duration::from_millis(400);
    let options = BeginOptions::new(SHORT, SHORTER);
    for renewed in [false, true] {
        let (key, mine) = (key(), fingerprint("mine"));
        let mut begun_at = Instant::now();
        let mut claim = match within("`begin` returns", store.store.begin(&key, &mine, &options)).await {
            Ok(Begin::Claimed(claim)) => claim,
            begun => panic!("a free key can be claimed, but `begin` gave {}", shown(&begun)),
        };
        if renewed {
            begun_at = Instant::now();
            claim.renew(SHORT).await.expect("the owner renews");
        }
        // No earlier than so, by any clock, are the lease and the life of the claim over.
        let (lease_until, kept_until) = (begun_at + SHORT, begun_at + SHORT + SHORTER);
        while Instant::now() < kept_until {
            let begun = within("`begin` returns", store.store.begin(&key, &mine, &options)).await;
            let returned_at = Instant::now();
            match begun {
                Ok(Begin::InFlight(_)) => tokio::time::sleep(SHORTER / 20).await,
                Ok(Begin::Abandoned(_)) if returned_at >= lease_until => break,
                Ok(Begin::Claimed(_)) if returned_at >= kept_until => break,
                begun => panic!(
                    "a claim is in flight for its lease, and then abandoned for the TTL, but {:?} after it `begin` gave {}",
                    returned_at - begun_at,
                    shown(&begun)
                ),
            }
        }
    }
}

/// A renewed claim is still its owner's.
pub async fn a_renewed_claim_stays<S: Store>(store: &Attached<S>) {
    let (key, mine) = (key(), fingerprint("mine"));
    let mut claim = store.claim(&key, &mine).await;
    for _ in 0..3 {
        claim.renew(LEASE).await.expect("the owner renews");
    }
    assert!(matches!(store.begin(&key, &mine).await, Ok(Begin::InFlight(_))), "a renewed claim is in flight");
    claim.complete(record(&mine, b"response", TTL), TTL).await.expect("the owner completes");
    store.record(&key, &mine).await;
}

/// The same owner completing twice gets the same result, since acknowledgements get lost.
pub async fn a_cloned_claim_repeats_its_completion<S: Store>(store: &Attached<S>) {
    let (key, mine) = (key(), fingerprint("mine"));
    let claim = store.claim(&key, &mine).await;
    let [Some(clone), Some(mut renews), Some(releases)] = [(); 3].map(|()| claim.try_clone()) else { return };
    claim.complete(record(&mine, b"response", TTL), TTL).await.expect("the owner completes");
    clone.complete(record(&mine, b"response", TTL), TTL).await.expect("the owner completes again");
    let renewed = renews.renew(LEASE).await;
    assert!(matches!(renewed, Err(StoreError::Lost)), "a record was renewed: {renewed:?}");
    let released = releases.release().await;
    assert!(matches!(released, Err(StoreError::Lost)), "a record was released: {released:?}");
    assert_eq!(content(&store.record(&key, &mine).await).as_deref(), Some(&b"response"[..]));
}

/// The same owner releasing twice gets the same result, since acknowledgements get lost. It leaves the key to the request that has
/// claimed it meanwhile.
pub async fn a_cloned_claim_repeats_its_release<S: Store>(store: &Attached<S>) {
    for claimed_meanwhile in [false, true] {
        let (key, mine) = (key(), fingerprint("mine"));
        let claim = store.claim(&key, &mine).await;
        let [Some(clone), Some(other)] = [(); 2].map(|()| claim.try_clone()) else { return };
        claim.release().await.expect("the owner releases");
        let next = if claimed_meanwhile { Some(store.claim(&key, &mine).await) } else { None };
        clone.release().await.expect("the owner releases again");
        let next = match next {
            None => store.claim(&key, &mine).await,
            Some(next) => {
                let begun = store.begin(&key, &mine).await;
                assert!(matches!(begun, Ok(Begin::InFlight(_))), "the claim of another request was released");
                next
            }
        };
        next.complete(record(&mine, b"next", TTL), TTL).await.expect("the next owner completes");
        other.release().await.expect("the owner releases again");
        assert_eq!(content(&store.record(&key, &mine).await).as_deref(), Some(&b"next"[..]));
    }
}

/// A claim that has ended is no owner's: an owner that comes late neither renews nor records anything under a key that is free.
///
/// Passes if the store has no clones of a claim, and keeps a claim for as long as its owner lives, or for ever.
pub async fn a_key_that_is_free_has_no_owner<S: Store>(store: &Attached<S>) {
    let lost = |what, step| assert!(matches!(step, Err(StoreError::Lost)), "{what} of a free key succeeded: {step:?}");
    let late = async |key: &StorageKey, mine: &Fingerprint, mut renews: S::Claim, completes: Option<S::Claim>| {
        lost("a renewal", renews.renew(LEASE).await);
        // Nor does a renewal that has failed make it an owner.
        for claim in [Some(renews), completes].into_iter().flatten() {
            lost("a completion", claim.complete(record(mine, b"late", TTL), TTL).await);
        }
        store.claim(key, mine).await.release().await.expect("the owner releases");
    };
    let (released, mine) = (key(), fingerprint("mine"));
    let claim = store.claim(&released, &mine).await;
    if let [Some(renews), Some(completes)] = [(); 2].map(|()| claim.try_clone()) {
        claim.release().await.expect("the owner releases");
        late(&released, &mine, renews, Some(completes)).await;
    }
    for renews_first in [false, true] {
        let forgotten = key();
        let Some((previous, found)) = abandoned(store, &forgotten, &mine).await else { return };
        assert!(store.store.forget(&forgotten).await.expect("`forget` returns"), "there was an abandoned claim");
        let (first, second) = if renews_first { (previous, found) } else { (found, previous) };
        late(&forgotten, &mine, first, Some(second)).await;
    }
}

/// `ended` resolves for all who wait, however the claim ends.
pub async fn waiters_wake_when_the_claim_ends<S: Store>(store: &Attached<S>) {
    for how in 0..3 {
        let (key, mine) = (key(), fingerprint("mine"));
        let claim = store.claim(&key, &mine).await;
        let mut waiters = JoinSet::new();
        for _ in 0..8 {
            let store = Arc::clone(&store.store);
            waiters.spawn(async move {
                loop {
                    match store.begin(&key, &mine, &options()).await {
                        // A wake-up may be spurious, so look again each time.
                        Ok(Begin::InFlight(_)) => store.ended(&key).await,
                        Ok(Begin::Claimed(claim)) => break claim.release().await.expect("the owner releases"),
                        _ => break,
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        match how {
            0 => claim.complete(record(&mine, b"response", TTL), TTL).await.expect("the owner completes"),
            1 => claim.release().await.expect("the owner releases"),
            _ if !store.capabilities.claims_live_with_owner => {
                // Only the end of the lease frees such a claim.
                claim.release().await.expect("the owner releases");
            }
            _ => drop(claim),
        }
        while let Some(woken) = within("all waiters wake up", waiters.join_next()).await {
            woken.expect("no panic");
        }
    }
    within("`ended` of a free key resolves", store.store.ended(&key())).await;
}

/// A `begin` that is dropped half-way leaves the key absent, abandoned, or to be freed when its lease has expired.
pub async fn a_begin_that_is_dropped_leaves_no_claim_without_an_end<S: Store>(store: &Attached<S>) {
    let (key, mine) = (key(), fingerprint("mine"));
    let options = options();
    let done = {
        let mut begin = pin!(store.store.begin(&key, &mine, &options));
        poll_fn(|cx| Poll::Ready(begin.as_mut().poll(cx).is_ready())).await
    };
    let begun = tokio::time::timeout(MAX_WAIT, store.store.begin(&key, &mine, &options)).await;
    match begun.expect("`begin` returns after another was dropped") {
        Ok(Begin::Claimed(_)) => assert!(!done, "a claim that was granted and dropped is not free"),
        Ok(Begin::Abandoned(_) | Begin::InFlight(_)) => {}
        begun => panic!("a dropped `begin` leaves no record, but `begin` gave {}", shown(&begun)),
    }
}
