//! What is written down of each look-up and each change: who, what, which key, and what came of it.

use std::error::Error;
use std::fmt;

use idem_runtime::{StorageKey, StoreError};

/// What a person did on the page, or tried to. Handed to the hook of [`Admin::audit`](super::Admin::audit), and logged with
/// `tracing` at info under the target `idem_admin::audit`.
///
/// It never has the key itself, nor anything that was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Audit {
    /// Who, as the closure given to [`Admin::new`](super::Admin::new) said.
    pub actor: String,
    /// What.
    pub action: Action,
    /// To which key, in which scope. Its `Display` is the eight hex digits that the other log lines of this key have.
    /// `None` for a list, and if the text in the form cannot be a key.
    pub key: Option<StorageKey>,
    /// The endpoint that the key was used on, if that is known.
    pub endpoint: Option<String>,
    /// What came of it.
    pub result: AuditResult,
}

/// What can be done on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// A key was looked up, and what is recorded was shown.
    LookUp,
    /// The keys whose outcome is unknown were listed, or a part of them.
    ListUnknown,
    /// A record was forgotten: a retry runs the handler again.
    Forget,
    /// The claim of an execution that hangs was taken away: its outcome is unknown.
    Revoke,
    /// An unknown outcome was settled: it happened, and retries are told so.
    SettleHappened,
    /// An unknown outcome was settled: it happened, and retries get the response that was written down.
    SettleResponse,
    /// An unknown outcome was settled: it did not happen, and a retry may run the handler again.
    SettleDidNotHappen,
}

impl Action {
    /// The name of this action, for programs: never changes.
    pub fn code(self) -> &'static str {
        match self {
            Self::LookUp => "look_up",
            Self::ListUnknown => "list_unknown",
            Self::Forget => "forget",
            Self::Revoke => "revoke",
            Self::SettleHappened => "settle_happened",
            Self::SettleResponse => "settle_response",
            Self::SettleDidNotHappen => "settle_did_not_happen",
        }
    }

    /// What a person is told when it was done.
    pub(super) fn done(self) -> &'static str {
        match self {
            Self::LookUp => "Looked up.",
            Self::ListUnknown => "Listed.",
            Self::Forget => "Forgotten. The next request with this key runs again.",
            Self::Revoke => "The request that hung has lost this key. Now settle what became of it.",
            Self::SettleHappened => "Settled: it happened. A retry is told so, and does not run again.",
            Self::SettleResponse => "Settled: it happened. A retry gets the response that you wrote down.",
            Self::SettleDidNotHappen => "Settled: it did not happen. The next request with this key runs again.",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// What came of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AuditResult {
    /// It was done.
    Done,
    /// Nothing is stored under this key in this scope.
    Absent,
    /// It was not done: the key is in flight, or its state is not the one when the person decided, or its execution keeps the key, or
    /// the store cannot take it away, or the page does not allow it, since it is for look-ups only, or it could not be checked that the
    /// form was sent from this page.
    Refused,
    /// The store could not be asked, or did not reply: of a change it is not known whether it was made.
    Failed,
}

impl AuditResult {
    /// The name of this result, for programs: never changes.
    pub fn code(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Absent => "absent",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for AuditResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Audit {
    /// The actor and the endpoint are quoted, so that no name can forge a line of the log.
    pub(super) fn log(&self) {
        let Self { actor, action, key, endpoint, result } = self;
        let key = key.map(tracing::field::display);
        tracing::info!(target: "idem_admin::audit", %action, key, ?endpoint, ?actor, %result, "an operator used the admin page");
    }
}

/// Returns why the store failed, for the log. The page does not show it.
pub(super) fn cause(error: &StoreError) -> Option<String> {
    error.source().map(ToString::to_string)
}
