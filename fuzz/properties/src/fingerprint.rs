//! Fingerprints and storage keys of any parts.

use idem_axum::Fingerprint;
use idem_axum::fuzzing::{Key, Scope, StorageKey};

use crate::input::Input;

/// The input is cut into parts in two ways. The lists are equal if and only if their fingerprints are.
pub(crate) fn parts(input: &[u8]) {
    let mut input = Input(input);
    let (one, other) = (cuts(&mut input), cuts(&mut input));
    let (one, other) = (cut(&one, input.0), cut(&other, input.0));
    assert_eq!(fingerprint(&one) == fingerprint(&other), one == other, "{one:?} {other:?}");
    assert_eq!(scope(&one) == scope(&other), values(&one) == values(&other), "{one:?} {other:?}");
    let key = Key::parse(b"k").expect("a key");
    let (first, second) = (StorageKey::new("", &scope(&one), &key), StorageKey::new("", &scope(&other), &key));
    assert_eq!(first == second, values(&one) == values(&other), "{one:?} {other:?}");
    assert_ne!(first, StorageKey::new("", &Scope::GLOBAL, &key));
    assert_ne!(first.as_bytes(), fingerprint(&one).as_bytes(), "the two domains meet");
}

/// Up to seven tags with lengths.
fn cuts(input: &mut Input) -> Vec<(u8, usize)> {
    let count = input.byte() % 8;
    (0..count).map(|_| (input.byte(), usize::from(input.byte()) % 24)).collect()
}

fn cut<'a>(cuts: &[(u8, usize)], bytes: &'a [u8]) -> Vec<(u8, &'a [u8])> {
    let mut bytes = Input(bytes);
    cuts.iter().map(|&(tag, length)| (tag, bytes.take(length))).collect()
}

fn fingerprint(parts: &[(u8, &[u8])]) -> Fingerprint {
    let mut builder = Fingerprint::builder();
    for (tag, value) in parts {
        builder.part(*tag, value);
    }
    builder.finish()
}

fn values<'a>(parts: &[(u8, &'a [u8])]) -> Vec<&'a [u8]> {
    parts.iter().map(|part| part.1).collect()
}

fn scope(parts: &[(u8, &[u8])]) -> Scope {
    parts.iter().fold(Scope::arguments(), |scope, part| scope.with(part.1))
}
