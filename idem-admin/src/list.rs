//! The keys whose outcome is unknown.

use axum::body::Bytes;
use idem_runtime::{ExecutionInfo, Idempotency, KeyReport, StorageKey, StoreError};
use serde_json::{Value, json};

use super::key_details::date;

/// A list has about this many keys.
const MAX_KEYS: usize = 100;
/// How many pages of the store are read for it.
const MAX_PAGES: usize = 20;

/// A part of the keys whose outcome is unknown.
pub(super) struct UnknownPage {
    pub(super) keys: Vec<(StorageKey, KeyReport)>,
    /// Where the rest begins, in hex digits.
    pub(super) next: Option<String>,
}

impl UnknownPage {
    pub(super) async fn of(idempotency: &Idempotency, from: Option<Bytes>) -> Result<Self, StoreError> {
        let (mut keys, mut next) = (Vec::new(), from);
        for _ in 0..MAX_PAGES {
            let page = idempotency.inspect_unknown(next).await?;
            keys.extend(page.keys);
            next = page.next;
            if next.is_none() || keys.len() >= MAX_KEYS {
                break;
            }
        }
        // A store that is scanned may return a key on two pages.
        keys.sort_by_key(|(key, _)| *key);
        keys.dedup_by_key(|(key, _)| *key);
        // The longest ago first; what is not known comes last.
        keys.sort_by_key(|(_, report)| report.started_at().map_or((1, 0), |started_at| (0, started_at.as_nanos())));
        let next = next.map(|next| next.iter().map(|byte| format!("{byte:02x}")).collect());
        Ok(Self { keys, next })
    }

    /// Whether there are keys of functions without HTTP, which have storage keys of their own.
    pub(super) fn has_functions(&self) -> bool {
        let mut endpoints = self.keys.iter().filter_map(|(_, report)| report.endpoint());
        endpoints.any(|endpoint| endpoint.starts_with("once "))
    }

    /// For scripts.
    pub(super) fn json(&self) -> Value {
        let keys = self.keys.iter().map(|(key, report)| {
            json!({
                "key": key.to_string(),
                "endpoint": report.endpoint(),
                "trace": trace(report),
                "started_at": report.started_at().map(date),
                "expires_at": report.expires_at().map(date),
            })
        });
        json!({ "unknown": keys.collect::<Vec<_>>(), "next": self.next })
    }
}

pub(super) fn trace(report: &KeyReport) -> Option<String> {
    report.execution_info().and_then(ExecutionInfo::trace).map(|trace| trace.to_string())
}
