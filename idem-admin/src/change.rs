//! A change, from what a person decided to what came of it.

use idem_runtime::{Idempotency, Outcome, SettleError, StoreError};

use super::audit::{Action, AuditResult};
use super::finding::Finding;
use super::form::{Fields, LookUp, Mistake, Settle, Step};
use idem_axum::private;

/// What a person decided.
pub(super) struct Change {
    pub(super) action: Action,
    /// How the claim ends; `None` where a record is forgotten.
    outcome: Option<Outcome>,
    /// The state of the key when they decided.
    seen: String,
}

/// What came of it.
pub(super) struct Changed {
    pub(super) result: AuditResult,
    pub(super) endpoint: Option<String>,
}

impl Change {
    pub(super) fn of(fields: &Fields) -> Result<Self, Mistake> {
        let (action, outcome) = match (fields.step, fields.settle) {
            (Step::ForgetNow, _) => (Action::Forget, None),
            (_, Settle::Happened) => (Action::SettleHappened, Some(Outcome::NotReplayable)),
            (_, Settle::Answer) => {
                let builder = private::encode(fields.answer()?);
                (Action::SettleAnswer, Some(builder.map_or(Outcome::NotReplayable, Outcome::Record)))
            }
            (_, Settle::DidNotHappen) => (Action::SettleDidNotHappen, Some(Outcome::Release)),
            (_, Settle::Unsaid) => return Err(Mistake::unsaid()),
        };
        Ok(Self { action, outcome, seen: fields.seen.clone() })
    }

    /// Makes the change, if the key is in the same state as when the person decided.
    ///
    /// It looks right before, and a store forgets whatever is there: nothing but that one step lies between.
    pub(super) async fn make(self, idempotency: &Idempotency, looked: &LookUp) -> Changed {
        let finding = match Finding::of(idempotency, looked).await {
            Ok(Some(finding)) => finding,
            Ok(None) => return Changed { result: AuditResult::Absent, endpoint: None },
            Err(error) => return Changed { result: failed(idempotency, looked, &error), endpoint: None },
        };
        let same = finding.seen() == self.seen;
        let result = match self.outcome {
            None if same && finding.can_be_forgotten() => match idempotency.forget(&looked.scope, &looked.key).await {
                Ok(true) => AuditResult::Done,
                Ok(false) => AuditResult::Absent,
                Err(error) => failed(idempotency, looked, &error),
            },
            Some(outcome) if same && finding.can_be_settled() => {
                match idempotency.settle(&looked.scope, &looked.key, outcome).await {
                    Ok(_) => AuditResult::Done,
                    Err(SettleError::Free) => AuditResult::Absent,
                    Err(SettleError::Store(error)) => failed(idempotency, looked, &error),
                    Err(_) => AuditResult::Refused,
                }
            }
            _ => AuditResult::Refused,
        };
        Changed { result, endpoint: finding.endpoint }
    }
}

fn failed(idempotency: &Idempotency, looked: &LookUp, error: &StoreError) -> AuditResult {
    tracing::error!(key = %looked.storage_key(idempotency), %error, "the store failed while a change of the admin page was made");
    AuditResult::Failed
}
