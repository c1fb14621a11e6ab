//! Another fingerprint under another policy: the refusal names the change of the policy.

use super::*;
use crate::endpoint::PolicyTag;
use crate::memory::MemoryClaim;
use crate::{MemoryStore, ShadowOutcome, StoredEntry};

const OLD: PolicyTag = PolicyTag::NONE.with(b"old");
const NEW: PolicyTag = PolicyTag::NONE.with(b"new");

fn under(request: &str, policy: PolicyTag) -> Attempt {
    attempt("a", request).under(policy)
}

/// How a store tells what is known of a claim.
#[derive(Clone, Copy, PartialEq)]
enum Inspection {
    AtOnce,
    Later,
    Unsupported,
}

impl Hooks<MemoryStore> for Inspection {
    async fn begin(
        &self,
        store: &MemoryStore,
        key: &StorageKey,
        fingerprint: &Fingerprint,
        options: &BeginOptions,
    ) -> Result<Begin<MemoryClaim>, StoreError> {
        if *self == Self::Later {
            tokio::task::yield_now().await;
        }
        store.begin(key, fingerprint, options).await
    }

    async fn inspect(&self, store: &MemoryStore, key: &StorageKey) -> Result<Option<StoredEntry>, StoreError> {
        match self {
            Self::AtOnce => {}
            Self::Later => tokio::task::yield_now().await,
            Self::Unsupported => return Err(StoreError::CannotInspect),
        }
        store.inspect(key).await
    }
}

/// Returns what an attempt gets, enforced and in shadow mode.
async fn refused(idempotency: &Idempotency, attempt: Attempt) -> RefusalReason {
    let Err(reason) = idempotency.run(attempt, Handler::ready().run(response("two"))).await else {
        panic!("the handler ran, or the record of another request was replayed");
    };
    let (report, reported) = oneshot::channel();
    let report = move |outcome| drop(report.send(outcome));
    drop(idempotency.shadow(attempt, report).await);
    match reported.await {
        Ok(ShadowOutcome::Refuse(shadow)) => assert_eq!(shadow.to_string(), reason.to_string()),
        other => panic!("{other:?}"),
    }
    reason
}

#[tokio::test]
async fn another_fingerprint_is_a_changed_policy_only_under_another_tag() {
    for inspection in [Inspection::AtOnce, Inspection::Later, Inspection::Unsupported] {
        let idempotency = Idempotency::new(Intercept::new(MemoryStore::new(), inspection));
        let handler = Handler::new();
        let mut first = Box::pin(idempotency.run(under("x", OLD), handler.run(response("one"))));
        tokio::select! {
            () = handler.started.notified() => {}
            _ = &mut first => panic!("the handler waits"),
        }
        let claimed = refused(&idempotency, under("y", NEW)).await;
        match inspection {
            Inspection::Unsupported => assert!(matches!(claimed, RefusalReason::Mismatch), "{claimed:?}"),
            _ => assert!(matches!(claimed, RefusalReason::PolicyChanged), "{claimed:?}"),
        }
        let same_rules = refused(&idempotency, under("y", OLD)).await;
        assert!(matches!(same_rules, RefusalReason::Mismatch), "{same_rules:?}");
        let same_request = refused(&idempotency, under("x", NEW)).await;
        assert!(matches!(same_request, RefusalReason::InFlight), "{same_request:?}");

        handler.may_end.add_permits(1);
        assert_eq!(ran(first.await), 1);
        let recorded_under_old = refused(&idempotency, under("y", NEW)).await;
        assert!(matches!(recorded_under_old, RefusalReason::PolicyChanged), "{recorded_under_old:?}");
        let same_rules = refused(&idempotency, under("y", OLD)).await;
        assert!(matches!(same_rules, RefusalReason::Mismatch), "{same_rules:?}");
        let replay = idempotency.run(under("x", NEW), handler.run(response("two"))).await;
        assert_eq!(recorded(replay), "one", "the fingerprint is equal, so the tag does not count");
    }
}

#[tokio::test]
async fn a_request_to_another_endpoint_is_another_request() {
    let idempotency = Idempotency::in_memory();
    let at = |route, request, policy| under(request, policy).at(Endpoint::new("POST", route));
    assert_eq!(ran(idempotency.run(at("/a", "x", OLD), Handler::ready().run(response("one"))).await), 1);
    let elsewhere = refused(&idempotency, at("/b", "y", NEW)).await;
    assert!(matches!(elsewhere, RefusalReason::Mismatch), "{elsewhere:?}");
    let here = refused(&idempotency, at("/a", "y", NEW)).await;
    assert!(matches!(here, RefusalReason::PolicyChanged), "{here:?}");
}

#[tokio::test]
async fn without_a_tag_nothing_is_known_of_a_change() {
    for (first, second) in [(PolicyTag::NONE, NEW), (OLD, PolicyTag::NONE)] {
        let idempotency = Idempotency::in_memory();
        assert_eq!(ran(idempotency.run(under("x", first), Handler::ready().run(response("one"))).await), 1);
        let reason = refused(&idempotency, under("y", second)).await;
        assert!(matches!(reason, RefusalReason::Mismatch), "{reason:?}");
    }
}
