//! A change, from what a person decided to what came of it.

use idem_runtime::{Idempotency, Outcome, SettleError, StoreError};

use super::audit::{Action, AuditResult};
use super::form::{Fields, FormStep, LookUp, Mistake, Settle};
use super::key_details::KeyDetails;
use idem_axum::private;

/// What a person decided.
pub(super) struct Change {
    pub(super) action: Action,
    kind: ChangeKind,
    /// The state of the key when they decided.
    seen: String,
}

enum ChangeKind {
    Forget,
    Revoke,
    /// The claim ends like this.
    Settle(Outcome),
}

/// What came of it.
pub(super) struct Changed {
    pub(super) result: AuditResult,
    pub(super) endpoint: Option<String>,
}

impl Change {
    pub(super) fn of(fields: &Fields) -> Result<Self, Mistake> {
        let (action, kind) = match (fields.step, fields.settle) {
            (FormStep::ForgetNow, _) => (Action::Forget, ChangeKind::Forget),
            (FormStep::RevokeNow, _) => (Action::Revoke, ChangeKind::Revoke),
            (_, Settle::Happened) => (Action::SettleHappened, ChangeKind::Settle(Outcome::NotReplayable)),
            (_, Settle::Response) => {
                let builder = private::encode(fields.response()?);
                (Action::SettleResponse, ChangeKind::Settle(builder.map_or(Outcome::NotReplayable, Outcome::Record)))
            }
            (_, Settle::DidNotHappen) => (Action::SettleDidNotHappen, ChangeKind::Settle(Outcome::Release)),
            (_, Settle::Unsaid) => return Err(Mistake::unsaid()),
        };
        Ok(Self { action, kind, seen: fields.seen.clone() })
    }

    /// Makes the change, if the key is in the same state as when the person decided.
    ///
    /// It looks right before, and a store forgets whatever is there: nothing but that one step lies between.
    pub(super) async fn make(self, idempotency: &Idempotency, looked: &LookUp) -> Changed {
        let details = match KeyDetails::of(idempotency, looked).await {
            Ok(Some(details)) => details,
            Ok(None) => return Changed { result: AuditResult::Absent, endpoint: None },
            Err(error) => return Changed { result: failed(idempotency, looked, &error), endpoint: None },
        };
        let same = details.seen() == self.seen;
        let gone = |done: Result<bool, StoreError>| match done {
            Ok(true) => AuditResult::Done,
            Ok(false) => AuditResult::Absent,
            Err(error) => failed(idempotency, looked, &error),
        };
        let result = match self.kind {
            ChangeKind::Forget if same && details.can_be_forgotten() => {
                gone(idempotency.forget(&looked.scope, &looked.key).await)
            }
            ChangeKind::Revoke if same && details.can_be_revoked() => {
                gone(idempotency.revoke(&looked.scope, &looked.key).await)
            }
            ChangeKind::Settle(outcome) if same && details.can_be_settled() => {
                match idempotency.settle(&looked.scope, &looked.key, outcome).await {
                    Ok(_) => AuditResult::Done,
                    Err(SettleError::Free) => AuditResult::Absent,
                    Err(SettleError::Store(error)) => failed(idempotency, looked, &error),
                    Err(_) => AuditResult::Refused,
                }
            }
            _ => AuditResult::Refused,
        };
        Changed { result, endpoint: details.endpoint }
    }
}

fn failed(idempotency: &Idempotency, looked: &LookUp, error: &StoreError) -> AuditResult {
    tracing::error!(key = %looked.storage_key(idempotency), %error, "the store failed while a change of the admin page was made");
    AuditResult::Failed
}
