//! Values and fingerprints, as they are written and read again.

use std::any::type_name;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::*;

#[tokio::test]
async fn a_value_that_does_not_decode_is_an_error_and_never_a_second_run() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Changed {
        parcel: String,
    }
    let idempotency = Idempotency::in_memory();
    assert_eq!(idempotency.once("ship", "a").run(async || count(Runs::default()).await).await.unwrap(), 1);
    let changed: Result<Changed, _> = idempotency.once("ship", "a").run(async || Err(Failure::Own("ran again"))).await;
    let reason = refused(changed);
    assert!(matches!(reason, RefusalReason::StoreUnavailable(StoreError::Unreadable(_))), "{reason:?}");
    assert!(!reason.is_retryable());
    let (text, key) = (reason.to_string(), idempotency.once("ship", "a").key.to_string());
    assert!(text.contains(type_name::<Changed>()) && text.contains(&key), "{text}");
}

#[test]
fn a_record_of_another_format_is_an_error() {
    let key = StorageKey::from_bytes([1; 32]);
    assert_eq!(decode::<u32>(key, &Bytes::from_static(b"J17")).unwrap(), 17);
    // An HTTP record starts with its version.
    for content in [&b""[..], b"\x0117", b"17", b"J", b"J17 18"] {
        assert!(decode::<u32>(key, &Bytes::copy_from_slice(content)).is_err(), "{content:?}");
    }
}

#[test]
fn a_fingerprint_is_that_of_canonical_json() {
    #[derive(Serialize)]
    struct Order {
        total: f64,
        id: u64,
    }
    #[derive(Serialize)]
    struct Reordered {
        id: u64,
        total: u32,
    }
    let of = |value: &Value| fingerprint(value).unwrap();
    let order = fingerprint(&Order { total: 10.0, id: 7 }).unwrap();
    assert_eq!(order, fingerprint(&Reordered { id: 7, total: 10 }).unwrap());
    let map: HashMap<_, _> = [("id", 7), ("total", 10)].into();
    assert_eq!(order, fingerprint(&map).unwrap());
    assert_ne!(order, fingerprint(&Order { total: 10.5, id: 7 }).unwrap());
    // These are equal as `f64`.
    for (one, other) in [(1_u64 << 53, (1 << 53) + 1), (u64::MAX - 1, u64::MAX)] {
        assert_ne!(of(&serde_json::json!([{ "id": one }])), of(&serde_json::json!([{ "id": other }])));
    }
    assert_ne!(of(&i64::MIN.into()), of(&(i64::MIN + 1).into()));
    // Records live as long as their TTL, so what is spelled as text does not change.
    for (integer, is_text) in [((1_u64 << 53) - 1, false), (1 << 53, true)] {
        assert_eq!(of(&integer.into()) == of(&integer.to_string().into()), is_text, "{integer}");
    }
}

#[tokio::test]
async fn a_value_that_has_no_canonical_json_is_an_error_of_the_run() {
    let map: BTreeMap<(u8, u8), u8> = [((1, 2), 3)].into();
    let idempotency = Idempotency::in_memory();
    let run = async |once: Once| refused(once.run(async || count(Runs::default()).await).await);
    for once in [
        idempotency.once("ship", "a").fingerprint(&map),
        idempotency.once("ship", "a").fingerprint(&f64::NAN),
        idempotency.once("ship", "a").fingerprint(&u128::MAX),
    ] {
        let reason = run(once).await;
        assert!(matches!(reason, RefusalReason::FingerprintFailed(_)), "{reason:?}");
        assert!(!reason.is_retryable() && std::error::Error::source(&reason).is_some());
    }
    assert!(idempotency.once("ship", "a").inspect().await.unwrap().is_none(), "the function did not run");
}

#[tokio::test]
async fn a_result_that_does_not_serialize_is_returned_and_never_computed_again() {
    let idempotency = Idempotency::in_memory();
    let run = || {
        let value: BTreeMap<(u8, u8), u8> = [((1, 2), 3)].into();
        idempotency.once("ship", "a").run(async move || Ok::<_, Failure>(value))
    };
    assert_eq!(run().await.unwrap().len(), 1);
    assert!(matches!(refused(run().await), RefusalReason::NotReplayable));
}

/// `serde_json` writes values that it does not read.
#[tokio::test]
async fn a_result_that_is_nested_too_deeply_to_be_read_is_returned_and_never_computed_again() {
    #[derive(Serialize, Deserialize)]
    struct Nested {
        inner: Option<Box<Self>>,
    }
    impl Nested {
        fn new(depth: usize) -> Self {
            Self { inner: (depth > 1).then(|| Box::new(Self::new(depth - 1))) }
        }

        fn depth(&self) -> usize {
            1 + self.inner.as_deref().map_or(0, Self::depth)
        }
    }
    let idempotency = Idempotency::in_memory();
    let run = |depth: usize| {
        let once = idempotency.once("ship", depth.to_string());
        once.run(async move || Ok::<_, Failure>(Nested::new(depth)))
    };
    for _ in 0..2 {
        assert_eq!(run(127).await.map(|nested| nested.depth()).unwrap(), 127);
    }
    assert_eq!(run(128).await.map(|nested| nested.depth()).unwrap(), 128);
    let reason = refused(run(128).await.map(|nested| nested.depth()));
    assert!(matches!(reason, RefusalReason::NotReplayable), "{reason:?}");
    let many = (0..1000).map(|_| Nested::new(1)).collect::<Vec<_>>();
    Outcome::value(&many).unwrap();
    assert!(Outcome::value(&Nested::new(128)).is_err());
}

#[test]
fn a_number_is_read_as_it_was_written() {
    let key = StorageKey::from_bytes([1; 32]);
    // Without `float_roundtrip`, serde_json reads some of these as their neighbours.
    for number in (1..10_000).map(|number| 1.0 / f64::from(number)) {
        let json = format!("J{}", serde_json::to_string(&number).unwrap());
        assert_eq!(decode::<f64>(key, &Bytes::from(json)).unwrap().to_bits(), number.to_bits(), "{number}");
    }
}

/// A value whose serialization panics.
#[derive(Debug, PartialEq, Deserialize)]
struct Panicking;

impl Serialize for Panicking {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("on purpose")
    }
}

#[tokio::test]
async fn a_result_that_panics_when_it_serializes_is_returned_and_never_computed_again() {
    let idempotency = Idempotency::in_memory();
    let run = || {
        let once = idempotency.once("ship", "a").abandoned(Abandoned::Rerun);
        once.run(async || Ok::<_, Failure>(Panicking))
    };
    assert_eq!(run().await.unwrap(), Panicking);
    assert!(matches!(refused(run().await), RefusalReason::NotReplayable));
}

/// A value that panics when it is dropped.
#[derive(Debug, Serialize, Deserialize)]
struct Fragile;

impl Drop for Fragile {
    fn drop(&mut self) {
        panic!("on purpose")
    }
}

#[tokio::test]
async fn a_value_that_panics_when_it_is_dropped_is_recorded_when_its_caller_is_gone() {
    let idempotency = Idempotency::in_memory();
    let (started, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let caller = tokio::spawn({
        let (once, started, go_on) = (idempotency.once("ship", "a"), Arc::clone(&started), Arc::clone(&go_on));
        once.run(async move || {
            started.notify_one();
            go_on.notified().await;
            Ok::<_, Failure>(Fragile)
        })
    });
    started.notified().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    go_on.notify_one();
    idempotency.drain().await;
    let report = idempotency.once("ship", "a").inspect().await.unwrap().unwrap();
    assert!(matches!(report.status(), KeyStatus::Recorded), "{report:?}");
}

#[tokio::test]
async fn json_does_not_tell_some_of_nothing_from_none() {
    let once = Idempotency::in_memory().once("ship", "a");
    for wanted in [Some(()), None] {
        assert_eq!(once.clone().run(async || Ok::<_, RefusalReason>(Some(()))).await.unwrap(), wanted);
    }
}
