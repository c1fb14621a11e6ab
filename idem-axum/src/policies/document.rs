//! The policy document, as it is written. `schema.json` says the same for readers, and the rustdoc of `Policies` in words.

use std::time::Duration;

use idem_runtime::{Abandoned, MAX_KEY};
use serde::{Serialize, Serializer};

use super::index::ListedEndpoint;
use super::refusal_examples::{self, RefusalExample};
use crate::policy::{self, Binding, Part, Policy, Statuses};

/// Names may be added within a version. A name that goes, or means something else, is another version.
const VERSION: u32 = 1;

/// The whole document.
#[derive(Serialize)]
pub(crate) struct Document<'a> {
    version: u32,
    endpoints: Vec<Described<'a>>,
}

#[derive(Serialize)]
struct Described<'a> {
    method: &'a str,
    path: &'a str,
    #[serde(flatten)]
    rules: &'a DescribedRules,
}

impl<'a> Document<'a> {
    pub(super) fn of(endpoints: &'a [ListedEndpoint]) -> Self {
        let described = |endpoint: &'a ListedEndpoint| {
            let ListedEndpoint { method, path, rules, .. } = endpoint;
            Described { method: method.as_str(), path, rules }
        };
        Self { version: VERSION, endpoints: endpoints.iter().map(described).collect() }
    }
}

/// A policy, in the words of the document.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct DescribedRules {
    /// Whether they hold: in shadow mode they are on trial.
    pub(crate) enforced: bool,
    pub(crate) key: DescribedKey,
    ttl: Time,
    fingerprint: Vec<Equal>,
    scope: DescribedScope,
    in_flight: DescribedInFlight,
    mismatch: Status,
    pub(crate) record: Vec<Range>,
    pub(crate) replay: DescribedReplay,
    abandoned: &'static str,
    without_store: &'static str,
    max_response: Size,
    pub(crate) refusals: Vec<RefusalExample>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct DescribedKey {
    pub(crate) required: bool,
    /// `None` if the server takes the key from the content of the request.
    #[serde(flatten)]
    pub(crate) header: Option<KeyHeader>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct KeyHeader {
    #[serde(rename = "header")]
    pub(crate) name: String,
    pub(crate) min_length: usize,
    pub(crate) max_length: usize,
    pub(crate) pattern: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Time {
    #[serde(serialize_with = "seconds")]
    seconds: Duration,
    duration: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Status {
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Size {
    bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "part", rename_all = "lowercase")]
enum Equal {
    Endpoint,
    Method,
    Path,
    Query,
    Body,
    Json {
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        pointers: &'static [&'static str],
    },
    Header {
        name: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct DescribedScope {
    #[serde(flatten)]
    kind: DocumentedScope,
    /// Whether the same key on another path is another key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    path: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum DocumentedScope {
    Caller { name: &'static str },
    Global,
    Header { name: String },
    Arguments,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct DescribedInFlight {
    action: &'static str,
    status: u16,
    #[serde(flatten)]
    wait: Option<Time>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Range {
    pub(crate) from: u16,
    pub(crate) to: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct DescribedReplay {
    status: bool,
    headers: bool,
    pub(crate) body: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replay_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) marker: Option<Header>,
    pub(crate) added_headers: Vec<Header>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) value: &'static str,
    /// The recorded statuses whose replays have it. The marker names none, and is on all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) on: Vec<Range>,
}

impl DescribedRules {
    pub(super) fn of(policy: &'static Policy) -> Self {
        let (in_flight, replay) = (policy.in_flight, policy.replay);
        let marker = |name: &str| Header { name: name.to_ascii_lowercase(), value: "true", on: Vec::new() };
        let added_headers = policy.replay_with.iter().map(|added| Header {
            name: added.name.to_ascii_lowercase(),
            value: added.value,
            on: ranges(added.on),
        });
        Self {
            enforced: !policy.shadow,
            key: DescribedKey {
                required: policy.required && !policy.shadow,
                header: (!policy.key_from_arguments).then(|| KeyHeader {
                    name: policy.header.to_ascii_lowercase(),
                    min_length: policy.min_key,
                    max_length: MAX_KEY,
                    pattern: pattern(policy.min_key),
                }),
            },
            ttl: Time::of(policy.ttl),
            fingerprint: fingerprint(policy),
            scope: DescribedScope { kind: scope_kind(policy.scope), path: policy.scope.has_path() },
            in_flight: DescribedInFlight {
                action: if in_flight.wait.is_some() { "wait" } else { "reject" },
                status: in_flight.status,
                wait: in_flight.wait.map(Time::of),
            },
            mismatch: Status { status: policy.mismatch },
            record: ranges(policy.recorded(false)),
            replay: DescribedReplay {
                status: replay.status,
                headers: replay.headers,
                body: replay.body && policy.replay_status.is_none_or(|status| !Statuses::BODILESS.contains(status)),
                replay_status: policy.replay_status.or(if replay.status { None } else { Some(200) }),
                marker: policy.replay_header.map(marker),
                added_headers: added_headers.collect(),
            },
            abandoned: match policy.abandoned {
                Abandoned::Rerun => "rerun",
                _ => "refuse",
            },
            without_store: if policy.without_store { "run" } else { "refuse" },
            max_response: Size { bytes: policy.max_response },
            refusals: if policy.shadow { Vec::new() } else { refusal_examples::by(policy) },
        }
    }
}

fn scope_kind(scope: policy::Scope) -> DocumentedScope {
    match scope.binding() {
        Binding::Caller => DocumentedScope::Caller { name: "authorization" },
        Binding::Nothing => DocumentedScope::Global,
        Binding::Header(name) => DocumentedScope::Header { name: name.to_ascii_lowercase() },
        Binding::Arguments => DocumentedScope::Arguments,
    }
}

/// In the order of `Part`, whatever the order of the terms was.
fn fingerprint(policy: &Policy) -> Vec<Equal> {
    let mut parts = vec![Equal::Endpoint];
    for (part, equal) in [
        (Part::Method, Equal::Method),
        (Part::Path, Equal::Path),
        (Part::Query, Equal::Query),
        (Part::Body, Equal::Body),
        (Part::Json, Equal::Json { pointers: &[] }),
    ] {
        if policy.declares(part) {
            parts.push(equal);
        }
    }
    for part in policy.fingerprint {
        match part {
            Part::JsonPointers(pointers) => parts.push(Equal::Json { pointers }),
            Part::Header(name) => parts.push(Equal::Header { name: name.to_ascii_lowercase() }),
            _ => {}
        }
    }
    parts
}

/// What the value of the key's header looks like: bare, or a structured-field string, whose parameters would be ignored.
fn pattern(min: usize) -> String {
    let bare = r"[\x21\x23-\x2B\x2D-\x3A\x3C-\x7E]";
    let quoted = r#"(?:[\x21\x23-\x5B\x5D-\x7E]|\\["\\])"#;
    format!(r#"^(?:{bare}{{{min},{MAX_KEY}}}|"{quoted}{{{min},{MAX_KEY}}}")$"#)
}

fn ranges(statuses: Statuses) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for status in (200..=999).filter(|&status| statuses.contains(status)) {
        match ranges.last_mut() {
            Some(range) if range.to + 1 == status => range.to = status,
            _ => ranges.push(Range { from: status, to: status }),
        }
    }
    ranges
}

impl Time {
    fn of(time: Duration) -> Self {
        Self { seconds: time, duration: duration(time) }
    }
}

/// As the attribute has it: `24h`, `1h 30m`. Days only if nothing is left over, since a day is also 24 hours.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let in_days = seconds >= 2 * 86_400 && seconds.is_multiple_of(86_400);
    let (days, hours) = if in_days { (seconds / 86_400, 0) } else { (0, seconds / 3_600) };
    let units = [
        (days, "d"),
        (hours, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(time.subsec_millis()), "ms"),
        (u64::from(time.subsec_micros() % 1_000), "us"),
        (u64::from(time.subsec_nanos() % 1_000), "ns"),
    ];
    let units = units.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}"));
    units.collect::<Vec<_>>().join(" ")
}

/// A whole number, wherever it is one.
fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    if time.subsec_nanos() == 0 {
        serializer.serialize_u64(time.as_secs())
    } else {
        serializer.serialize_f64(time.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_spelled_as_in_the_attribute() {
        for (time, spelled) in [
            (Duration::from_secs(90), "1m 30s"),
            (Duration::from_secs(5_400), "1h 30m"),
            (Duration::from_secs(86_400), "24h"),
            (Duration::from_secs(48 * 3_600), "2d"),
            (Duration::from_secs(7 * 86_400), "7d"),
            (Duration::from_secs(7 * 86_400 + 1), "168h 1s"),
            (Duration::from_nanos(1_500_000_007), "1s 500ms 7ns"),
        ] {
            assert_eq!(duration(time), spelled);
        }
    }

    #[test]
    fn statuses_are_ranges() {
        let kept = Statuses::ALL.minus(Statuses::of(400)).minus(Statuses::of(422));
        assert_eq!(
            ranges(kept),
            [Range { from: 200, to: 399 }, Range { from: 401, to: 421 }, Range { from: 423, to: 999 }]
        );
        assert_eq!(ranges(Statuses::NONE), []);
    }
}
