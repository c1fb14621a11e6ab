//! What is shown of a key: its state, in words of a person who does not know this crate, and what is recorded.

use idem_runtime::{KeyStatus, Timestamp};
use maud::{Markup, html};

use super::super::form::{Fields, ScopeKind};
use super::super::key_details::{KeyDetails, Preview, date, distance, preview, shown};
use super::super::list::{UnknownPage, trace};
use super::Notice;
use idem_axum::private::RecordedResponse;

/// The state of a key: its name, what happened, and what a retry gets.
pub(super) struct StateText {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) retry: &'static str,
}

impl StateText {
    pub(super) fn of(state: KeyStatus) -> Self {
        let words = |name, what, retry| Self { name, what, retry };
        match state {
            KeyStatus::InFlight => {
                words("In flight", "A request with this key is being processed right now.", "A retry does not run.")
            }
            KeyStatus::OutcomeUnknown => words(
                "Outcome unknown",
                "A request with this key was started, and whatever ran it went away before it ended. It may have had its effect, or \
                 not.",
                "A retry is refused (409) until this is settled, unless its endpoint declares that it may run again.",
            ),
            KeyStatus::Recorded => words(
                "Recorded",
                "The request was processed, and its response is recorded.",
                "A retry gets the same response, and does not run again.",
            ),
            KeyStatus::NotReplayable => words(
                "Not replayable",
                "The request was processed, but its response was not recorded.",
                "A retry is refused (409), and does not run again.",
            ),
            _ => words(
                "Something else",
                "This page is too old to know the state of this key.",
                "Nothing can be changed here.",
            ),
        }
    }
}

pub(super) fn facts(fields: &Fields, details: &KeyDetails) -> Markup {
    let values = |text: &str| {
        html! {
            @for (at, line) in text.lines().enumerate() { @if at > 0 { ", " } code { (line) } }
        }
    };
    html! {
        dl {
            dt { "Key" } dd { code { (fields.key) } }
            @match fields.scope {
                ScopeKind::Unscoped => {}
                ScopeKind::Values => { dt { "Of" } dd { (values(&fields.values)) } }
                ScopeKind::Header => { dt { "Of" } dd { (fields.header) ": " (values(&fields.header_values)) } }
            }
            @if !fields.path.trim().is_empty() { dt { "On" } dd { code { (fields.path) } } }
            @if let Some(endpoint) = &details.endpoint { dt { "Endpoint" } dd { code { (endpoint) } } }
            @if let Some(at) = details.started_at { dt { "Started" } dd { (time(at)) ", " (distance(at, details.now)) " ago" } }
            @if let Some(replays) = details.replays {
                dt { "Replayed" }
                dd { @match replays { 0 => "never", 1 => "once", _ => { (replays) " times" } } }
            }
            @if let Some(at) = details.expires_at { dt { "Expires" } dd { (time(at)) ", in " (distance(at, details.now)) } }
            @if let Some(trace) = &details.trace { dt { "Trace" } dd { code { (trace) } } }
            dt { "In the logs" } dd { "key " code { (details.key) } }
        }
    }
}

pub(super) fn response(response: &RecordedResponse) -> Markup {
    let length = response.body.len();
    html! {
        dl {
            dt { "Status" } dd { (response.status) }
            @for (name, value) in &response.headers { dt { (name) } dd { code { (shown(value)) } } }
        }
        @match preview(&response.body) {
            Preview::Text("") => p.hint { "It has no body." },
            Preview::Text(text) => {
                p.hint { "Body, " @if text.len() < length { "the first " (text.len()) " of " } (length) " bytes" }
                pre dir="auto" { "\n" (text) }
            }
            Preview::Binary(hex) => {
                p.hint { "Body, " (length) " bytes that are no text. It begins with" }
                pre { (hex) }
            }
        }
    }
}

/// The keys of a list, each with what leads to its request.
pub(super) fn unknown_outcomes(listed: &UnknownPage) -> Markup {
    html! {
        @for (key, report) in &listed.keys {
            dl {
                dt { "Endpoint" } dd { @match report.endpoint() { Some(endpoint) => code { (endpoint) }, None => "not known" } }
                @if let Some(at) = report.started_at() {
                    dt { "Started" }
                    dd { (time(at)) @if let Some(age) = report.age() { ", " (distance(at, at.after(age))) " ago" } }
                }
                @if let Some(at) = report.expires_at() { dt { "Expires" } dd { (time(at)) } }
                @if let Some(trace) = trace(report) { dt { "Trace" } dd { code { (trace) } } }
                dt { "In the logs" } dd { "key " code { (key) } }
            }
        }
    }
}

pub(super) fn notice(notice: Option<Notice>) -> Markup {
    match notice {
        None => html! {},
        Some(Notice::Done(text)) => html! { .note.recorded role="status" { p { strong { (text) } } } },
        Some(Notice::Refused(text)) => html! { .note.alert role="alert" { p { strong { (text) } } } },
    }
}

fn time(at: Timestamp) -> Markup {
    let date = date(at);
    html! { time datetime=(date) { (date.replace('T', " ").replace('Z', " UTC")) } }
}
