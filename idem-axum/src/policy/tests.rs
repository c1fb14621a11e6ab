use std::panic::{AssertUnwindSafe, catch_unwind};

use idem_runtime::{InvalidKey, RefusalReason, StoreError};

use super::*;

/// Returns the message of the panic, which is the compile error of a `const`.
fn refused(make: impl FnOnce() -> Policy) -> String {
    let Err(panic) = catch_unwind(AssertUnwindSafe(make)) else { panic!("the policy was accepted") };
    panic.downcast::<String>().map_or_else(|_| "no text".to_owned(), |text| *text)
}

fn tag(policy: Policy) -> PolicyTag {
    policy.declared_at("shop::create").tag
}

#[test]
fn a_refusal_asks_for_a_retry_if_its_reason_is_retryable() {
    let reasons = [
        RefusalReason::InFlight,
        RefusalReason::Mismatch,
        RefusalReason::PolicyChanged,
        RefusalReason::OutcomeUnknown,
        RefusalReason::NotReplayable,
        RefusalReason::StoreUnavailable(StoreError::unavailable("reset")),
        RefusalReason::StoreUnavailable(StoreError::unreadable("bad checksum")),
        RefusalReason::StoreFull,
        RefusalReason::TooManyExecutions,
    ];
    for reason in reasons {
        let refusal = Refusal::new(reason.clone(), &Policy::DEFAULT);
        assert_eq!(refusal.retry_after().is_some(), reason.is_retryable(), "{reason:?}");
        if matches!(reason, RefusalReason::StoreUnavailable(_)) {
            assert_eq!(refusal.to_string().contains("Retry"), reason.is_retryable(), "{refusal}");
        }
    }
}

#[test]
fn what_the_attribute_refuses_a_policy_refuses_and_says_what_to_write() {
    let policy = Policy::DEFAULT;
    let refusals: &[(String, &str)] = &[
        (refused(|| policy.header("")), "write for example"),
        (refused(|| policy.min_key(0)), "write for example `8`"),
        (refused(|| policy.min_key(256)), "1 to 255"),
        (refused(|| policy.ttl(Duration::ZERO)), "remove the attribute"),
        (refused(|| policy.ttl(Duration::MAX)), "100 years"),
        (refused(|| policy.fingerprint(&[])), ".no_fingerprint()"),
        (refused(|| policy.fingerprint(&[Part::Body, Part::Path, Part::Body])), "twice"),
        (refused(|| policy.fingerprint(&[Part::Header("X-A"), Part::Header("x-a")])), "twice"),
        (refused(|| policy.fingerprint(&[Part::JsonPointers(&["/a", "/b", "/a"])])), "twice"),
        (refused(|| policy.fingerprint(&[Part::JsonPointers(&["/a"]), Part::JsonPointers(&["/a"])])), "twice"),
        (refused(|| policy.fingerprint(&[Part::JsonPointers(&[])])), "Part::Json"),
        (refused(|| policy.fingerprint(&[Part::JsonPointers(&["amount"])])), "start with `/`"),
        (refused(|| policy.fingerprint(&[Part::JsonPointers(&["/a", "/~"])])), "`~0`"),
        (refused(|| policy.fingerprint(&[Part::Header("a b")])), "letters, digits"),
        (refused(|| policy.scope(Scope::Header("a b"))), "letters, digits"),
        (refused(|| policy.scope(Scope::HeaderAndPath(""))), "not be empty"),
        (refused(|| policy.scope(Scope::Arguments)), "scope = user.id"),
        (refused(|| policy.scope(Scope::ArgumentsAndPath)), "scope = user.id"),
        (refused(|| policy.in_flight(InFlight::reject(302))), "write for example `409`"),
        (refused(|| policy.in_flight(InFlight::wait(Duration::ZERO))), "in_flight = reject"),
        (refused(|| policy.mismatch(200)), "400 to 599"),
        (refused(|| policy.record(Statuses::NONE)), "remove the attribute"),
        (refused(|| policy.record(Statuses::of(199))), "200 to 599"),
        (refused(|| policy.record(Statuses::of(700))), "200 to 599"),
        (refused(|| policy.timeout(Duration::ZERO)), "longer than zero"),
        (refused(|| policy.timeout(Duration::MAX)), "100 years"),
        (refused(|| policy.replay_status(101)), "200 to 599"),
        (refused(|| policy.replay(Replay::STATUS).replay_status(200)), "add `Replay::BODY`"),
        (refused(|| policy.replay_status(200).replay(Replay::STATUS)), "add `Replay::BODY`"),
        (refused(|| policy.replay_header("Location")), "Idempotent-Replayed"),
        (refused(|| policy.replay_header("Vary")), "Idempotent-Replayed"),
        (refused(|| policy.replay_header("none")), ".no_replay_header()"),
        (refused(|| policy.max_response(0)), "replay = status"),
    ];
    for (index, (message, fix)) in refusals.iter().enumerate() {
        assert!(message.contains(fix), "{index}: {message}");
    }
    let added = |name, value| {
        refused(move || {
            let _ = AddedHeader::new(name, value);
            policy
        })
    };
    assert!(added("Content-Type", "text/plain").contains("X-Replay-Info"));
    assert!(added("Content-Length", "5").contains("X-Replay-Info"));
    assert!(added("X-A", " padded").contains("remove it"));
    assert!(added("X-A", "a\r\nb").contains("visible ASCII"));
    let on_nothing = || {
        let _ = AddedHeader::new("X-A", "1").on(Statuses::NONE);
        policy
    };
    assert!(refused(on_nothing).contains("remove the header"));
}

#[test]
fn what_a_policy_says_of_itself_is_what_it_was_given() {
    let policy = Policy::DEFAULT;
    assert_eq!((policy.header_name(), policy.is_required(), policy.max_response), ("idempotency-key", false, 1 << 20));
    let policy = policy.header("X-Key").required().ttl(Duration::from_secs(99 * 31_557_600));
    assert_eq!((policy.header_name(), policy.is_required()), ("X-Key", true));
    assert_eq!(policy.time_to_live(), Duration::from_secs(99 * 31_557_600));
    assert_eq!([InFlight::reject(423).status(), InFlight::wait(Duration::from_secs(5)).status()], [423, 409]);
    const POINTERS: Part = Part::JsonPointers(&["/a", "/b"]);
    assert_eq!((POINTERS.pointers(), Part::Json.pointers()), (&["/a", "/b"][..], &[][..]));
    let reads_body = |parts| Policy::DEFAULT.fingerprint(parts).reads_body();
    assert!(!reads_body(&[Part::Method, Part::Path]) && reads_body(&[Part::Path, Part::Body]));
    assert!(reads_body(&[Part::Json]) && reads_body(&[POINTERS]));
    for (one, other, parts) in [
        (Replay::STATUS, Replay::HEADERS, [true, true, false]),
        (Replay::HEADERS, Replay::BODY, [false, true, true]),
        (Replay::BODY, Replay::STATUS, [true, false, true]),
    ] {
        for Replay { status, headers, body } in [one.and(other), other.and(one)] {
            assert_eq!([status, headers, body], parts);
        }
    }
}

#[test]
fn a_scope_binds_the_header_that_says_whose_key_it_is() {
    for (scope, bound) in [
        (Scope::Caller, &["Authorization", "cookie"][..]),
        (Scope::Header("X-Tenant"), &["x-tenant"][..]),
        (Scope::Global, &[]),
    ] {
        for name in ["Authorization", "cookie", "x-tenant", "accept"] {
            assert_eq!(scope.binds(name.as_bytes()), bound.contains(&name), "{scope:?} {name}");
        }
    }
}

#[test]
fn an_unset_record_is_all_and_differs_from_a_declared_one() {
    assert_eq!((Policy::DEFAULT.record, Policy::DEFAULT.recorded(false)), (None, Statuses::ALL));
    assert_eq!(Policy::DEFAULT.record(Statuses::ALL).record, Some(Statuses::ALL));
}

#[test]
fn the_presets_have_the_rules_of_their_specifications() {
    let webhook = Policy::WEBHOOK;
    assert_eq!((webhook.ttl, webhook.recorded(false)), (Duration::from_secs(604_800), Statuses::SUCCESS));
    assert_eq!((webhook.fingerprint, webhook.scope), (&[][..], Scope::GlobalAndPath));
    let acp = Policy::ACP;
    assert!(acp.required);
    assert_eq!((acp.fingerprint, acp.scope), (&[Part::Json][..], Scope::Path));
    assert!(
        acp.recorded(false).contains(201) && acp.recorded(false).contains(404) && !acp.recorded(false).contains(503)
    );
    assert_eq!((acp.mismatch, acp.in_flight.status, acp.ttl), (422, 409, Duration::from_secs(86_400)));
}

#[test]
fn a_tag_depends_on_handler_key_scope_and_fingerprint_and_on_nothing_else() {
    let base = tag(Policy::DEFAULT);
    for same in [
        Policy::DEFAULT.header("Idempotency-Key"),
        Policy::DEFAULT.fingerprint(&[Part::Body, Part::Query, Part::Method, Part::Path]),
        Policy::DEFAULT.ttl(Duration::from_secs(1)).mismatch(400).record(Statuses::SUCCESS).required().shadow(),
    ] {
        assert_eq!(tag(same), base, "{same:?}");
    }
    for other in [
        Policy::DEFAULT.header("X-Key"),
        Policy::DEFAULT.no_fingerprint(),
        Policy::DEFAULT.fingerprint(&[Part::Json]),
        Policy::DEFAULT.scope(Scope::Global),
        Policy::DEFAULT.scope(Scope::Path),
        Policy::DEFAULT.scope(Scope::GlobalAndPath),
        Policy::DEFAULT.scope(Scope::Header("X-Tenant")),
        Policy::DEFAULT.scope_of_arguments(),
        Policy::DEFAULT.scope_of_arguments_and_path(),
    ] {
        assert_ne!(tag(other), base, "{other:?}");
    }
    assert_ne!(Policy::DEFAULT.declared_at("shop::other").tag, base);
    let pointers = |parts| tag(Policy::DEFAULT.fingerprint(parts));
    let one = pointers(&[Part::JsonPointers(&["/a", "/b"])]);
    assert_eq!(one, pointers(&[Part::JsonPointers(&["/b"]), Part::JsonPointers(&["/a"])]), "the same fingerprint");
    assert_ne!(one, pointers(&[Part::JsonPointers(&["/a/b"])]));
    assert_eq!(pointers(&[Part::Header("X-A")]), pointers(&[Part::Header("x-a")]));
}

#[test]
fn the_shapes_of_stripe_and_of_the_agentic_commerce_protocol_name_the_kind_of_an_error() {
    use futures_util::FutureExt;
    type Render = fn(&Refusal) -> axum::response::Response;

    let policy = &Policy::DEFAULT;
    let source = StoreError::unavailable("reset");
    let kind = |render: Render, refusal: &Refusal| {
        let body = axum::body::to_bytes(render(refusal).into_body(), usize::MAX).now_or_never().unwrap().unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let error = body.get("error").unwrap_or(&body);
        error["type"].as_str().unwrap().to_owned()
    };
    for (refusal, stripe, acp) in [
        (Refusal::KeyMissing { policy }, "invalid_request_error", "invalid_request"),
        (Refusal::Mismatch { policy }, "idempotency_error", "invalid_request"),
        (Refusal::StoreUnavailable { policy, source }, "api_error", "service_unavailable"),
        (Refusal::HandlerPanicked { policy, undone: false }, "api_error", "processing_error"),
        (Refusal::HandlerTimedOut { policy, undone: false }, "api_error", "processing_error"),
    ] {
        assert_eq!(kind(render::stripe, &refusal), stripe, "{refusal:?}");
        assert_eq!(kind(render::acp, &refusal), acp, "{refusal:?}");
    }
}

#[test]
fn a_refusal_is_json_whatever_it_says() {
    use futures_util::FutureExt;

    const ANY_HEADER: Policy = Policy::DEFAULT.header("!#$%&'*+-.^_`|~");
    let policy = &ANY_HEADER;
    let source = || StoreError::unavailable("\"reset\"");
    let invalid = [
        InvalidKey::Empty,
        InvalidKey::TooLong,
        InvalidKey::TooShort { min: 8 },
        InvalidKey::Character,
        InvalidKey::Unterminated,
        InvalidKey::Syntax,
        InvalidKey::List,
    ];
    let mut refusals = vec![
        Refusal::KeyMissing { policy },
        Refusal::InFlight { policy },
        Refusal::Mismatch { policy },
        Refusal::PolicyChanged { policy },
        Refusal::OutcomeUnknown { policy },
        Refusal::NotReplayable { policy },
        Refusal::StoreUnavailable { policy, source: source() },
        Refusal::StoreUnavailable { policy, source: StoreError::unreadable(source()) },
        Refusal::StoreFull { policy },
        Refusal::LayerMissing { policy },
        Refusal::TooManyExecutions { policy },
        Refusal::HandlerPanicked { policy, undone: false },
        Refusal::HandlerPanicked { policy, undone: true },
        Refusal::HandlerTimedOut { policy, undone: false },
        Refusal::HandlerTimedOut { policy, undone: true },
    ];
    refusals.extend(invalid.map(|reason| Refusal::KeyInvalid { policy, reason }));
    for refusal in refusals {
        let said = |response: axum::response::Response, pointer| {
            let body = axum::body::to_bytes(response.into_body(), usize::MAX).now_or_never().unwrap().unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            body.pointer(pointer).unwrap().as_str().unwrap().to_owned()
        };
        assert_eq!(said(render::problem(&refusal), "/detail"), refusal.to_string());
        assert_eq!(said(render::problem(&refusal), "/title"), refusal.title());
        assert_eq!(said(render::stripe(&refusal), "/error/message"), refusal.to_string());
        assert_eq!(said(render::acp(&refusal), "/message"), refusal.to_string());
    }
}

#[test]
fn a_refusal_has_the_error_of_the_store_or_of_the_key_as_its_source() {
    let policy = &Policy::DEFAULT;
    let source = |refusal: &Refusal| std::error::Error::source(refusal).map(ToString::to_string);
    let down = StoreError::unavailable("down");
    let text = down.to_string();
    assert_eq!(source(&Refusal::StoreUnavailable { policy, source: down }), Some(text));
    let reason = InvalidKey::Empty;
    assert_eq!(source(&Refusal::KeyInvalid { policy, reason }), Some(reason.to_string()));
    assert_eq!(source(&Refusal::KeyMissing { policy }), None);
}
