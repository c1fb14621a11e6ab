//! The state of a key, made ready to be shown: to people on the page, and to scripts as JSON.

use std::str;
use std::time::{Duration, UNIX_EPOCH};

use http::HeaderValue;
use idem_runtime::{
    Clock, DecodeError, ExecutionInfo, Fingerprint, Idempotency, KeyReport, KeyStatus, StorageKey, StoreError,
    SystemClock, Timestamp,
};
use serde_json::{Value, json};

use super::form::LookUp;
use idem_axum::private::RecordedResponse;

/// How much of a body is shown, in bytes.
const SHOWN: usize = 4096;
/// How much of one that is no text.
const SHOWN_BINARY: usize = 64;

/// The state of a key.
pub(super) struct KeyDetails {
    pub(super) key: StorageKey,
    pub(super) state: KeyStatus,
    pub(super) endpoint: Option<String>,
    pub(super) trace: Option<String>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) replays: Option<u64>,
    /// What is recorded; the endpoint may change what a retry gets of it. Whatever a handler wrote, so it may be hostile.
    pub(super) response: Option<Result<RecordedResponse, DecodeError>>,
    /// When it was looked up, by the clock of the engine.
    pub(super) now: Timestamp,
    seen: Fingerprint,
}

/// As much of a body as is shown.
pub(super) enum Preview<'a> {
    Text(&'a str),
    /// In hex digits.
    Binary(String),
}

/// The start of a body.
pub(super) fn preview(body: &[u8]) -> Preview<'_> {
    let start = &body[..body.len().min(SHOWN)];
    match str::from_utf8(start) {
        Ok(text) => Preview::Text(text),
        // Cut within a character.
        Err(cut) if start.len() < body.len() && cut.error_len().is_none() => {
            Preview::Text(str::from_utf8(&start[..cut.valid_up_to()]).unwrap_or_default())
        }
        Err(_) => {
            let hex: Vec<_> = start.iter().take(SHOWN_BINARY).map(|byte| format!("{byte:02x}")).collect();
            Preview::Binary(hex.join(" "))
        }
    }
}

/// The value of a recorded header. A sensitive one must not be shown, as the handler that marked it said.
pub(super) fn shown(value: &HeaderValue) -> String {
    if value.is_sensitive() {
        return "(sensitive, not shown)".to_owned();
    }
    value.to_str().map_or_else(|_| value.as_bytes().escape_ascii().to_string(), ToOwned::to_owned)
}

impl KeyDetails {
    pub(super) async fn of(idempotency: &Idempotency, looked: &LookUp) -> Result<Option<Self>, StoreError> {
        let found = idempotency.inspect(&looked.scope, &looked.key).await?;
        Ok(found.map(|found| {
            let started_at = found.started_at();
            let now = started_at.zip(found.age()).map(|(started_at, age)| started_at.after(age));
            Self {
                key: looked.storage_key(idempotency),
                state: found.status(),
                endpoint: found.endpoint().map(ToOwned::to_owned),
                trace: found.execution_info().and_then(ExecutionInfo::trace).map(|trace| trace.to_string()),
                started_at,
                expires_at: found.expires_at(),
                replays: found.replays(),
                response: found.content().map(RecordedResponse::decode),
                now: now.unwrap_or_else(|| SystemClock::new().now()),
                seen: seen(&found),
            }
        }))
    }

    /// Whether there is something to forget that is known to have happened. An unknown outcome is settled instead.
    pub(super) fn can_be_forgotten(&self) -> bool {
        matches!(self.state, KeyStatus::Recorded | KeyStatus::NotReplayable)
    }

    /// Whether an execution has the key that may hang.
    pub(super) fn can_be_revoked(&self) -> bool {
        self.state == KeyStatus::InFlight
    }

    pub(super) fn can_be_settled(&self) -> bool {
        self.state == KeyStatus::OutcomeUnknown
    }

    /// The state of the key, in short: a form for a change carries it, so that a change is not made to something else than
    /// what the person saw.
    pub(super) fn seen(&self) -> String {
        self.seen.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// For scripts.
    pub(super) fn json(&self) -> Value {
        let response = self.response.as_ref().and_then(|response| response.as_ref().ok()).map(|response| {
            let headers = response.headers.iter().map(|(name, value)| (name.as_str(), shown(value)));
            json!({
                "status": response.status.as_u16(),
                "headers": headers.collect::<Vec<_>>(),
                "body": str::from_utf8(&response.body).ok(),
                "body_bytes": response.body.len(),
            })
        });
        json!({
            "state": code(self.state),
            "key": self.key.to_string(),
            "endpoint": self.endpoint,
            "trace": self.trace,
            "started_at": self.started_at.map(date),
            "expires_at": self.expires_at.map(date),
            "replays": self.replays,
            "response": response,
        })
    }
}

/// What makes one execution and its end different from every other one under the key. When it expires is no part of that:
/// a store may find it out from its clock and the time left, and tell another instant at each look.
fn seen(found: &KeyReport) -> Fingerprint {
    let mut parts = Fingerprint::builder();
    parts.part(b's', code(found.status()).as_bytes());
    parts.part(b'f', found.fingerprint().as_bytes());
    if let Some(info) = found.execution_info() {
        parts.part(b'o', &info.to_bytes());
    }
    if let Some(response) = found.content() {
        parts.part(b'a', response);
    }
    parts.finish()
}

/// The name of a state, for programs and for the style of the page.
pub(super) fn code(state: KeyStatus) -> &'static str {
    match state {
        KeyStatus::InFlight => "in-flight",
        KeyStatus::OutcomeUnknown => "outcome-unknown",
        KeyStatus::Recorded => "recorded",
        KeyStatus::NotReplayable => "not-replayable",
        _ => "other",
    }
}

/// As RFC 3339 has it, in UTC.
pub(super) fn date(at: Timestamp) -> String {
    // The year 2554 is the end of a timestamp, and well before the end of what can be formatted.
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(at.as_nanos())).to_string()
}

/// How far `at` is from `now`, in one unit: `3 minutes`.
pub(super) fn distance(at: Timestamp, now: Timestamp) -> String {
    let seconds = at.as_nanos().abs_diff(now.as_nanos()) / 1_000_000_000;
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}
