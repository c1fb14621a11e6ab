//! A change, from what a person decided to what came of it.

use idem_runtime::{Idempotency, Outcome, SettleError, StoreError};

use super::audit::{Action, AuditResult, cause};
use super::form::{Fields, FormStep, LookUp, Mistake, Settle};
use super::key_details::KeyDetails;
use idem_axum::private;

/// The key is no longer as the person saw it.
pub(super) const OTHERWISE: &str = "Nothing was changed: the key's state has changed since you opened this page.";
const UNASKED: &str = "Nothing was changed, since the state of the key could not be read. Look the key up again.";
const MAYBE: &str = "The store did not reply, so it is not known whether the change was made. Look the key up again.";
const KEPT: &str = "Nothing was changed: this request keeps its key, as one with a database transaction does. To end it, end its \
                    database session.";
const UNABLE: &str = "Nothing was changed: the store of this service cannot take a key away from its request.";

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
    /// What the person is told, if it was not made.
    pub(super) why: &'static str,
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
        let LookUp { scope, key } = looked;
        let details = match KeyDetails::of(idempotency, looked).await {
            Ok(Some(details)) => details,
            Ok(None) => return Changed { result: AuditResult::Absent, endpoint: None, why: OTHERWISE },
            Err(error) => {
                log(idempotency, looked, &error);
                return Changed { result: AuditResult::Failed, endpoint: None, why: UNASKED };
            }
        };
        let same = details.seen() == self.seen;
        let done = match self.kind {
            ChangeKind::Forget if same && details.can_be_forgotten() => idempotency.forget(scope, key).await,
            ChangeKind::Revoke if same && details.can_be_revoked() => idempotency.revoke(scope, key).await,
            ChangeKind::Settle(outcome) if same && details.can_be_settled() => {
                match idempotency.settle(scope, key, outcome).await {
                    Ok(_) => Ok(true),
                    Err(SettleError::Store(error)) => Err(error),
                    Err(_) => Ok(false),
                }
            }
            _ => return Changed { result: AuditResult::Refused, endpoint: details.endpoint, why: OTHERWISE },
        };
        let (result, why) = match done {
            Ok(true) => (AuditResult::Done, ""),
            // Something else than what the person saw is there by now, or nothing, or the request keeps its key.
            Ok(false) => match KeyDetails::of(idempotency, looked).await {
                Ok(None) => (AuditResult::Absent, OTHERWISE),
                Ok(Some(now)) if now.can_be_revoked() && now.seen() == self.seen => (AuditResult::Refused, KEPT),
                Ok(Some(_)) | Err(_) => (AuditResult::Refused, OTHERWISE),
            },
            Err(StoreError::CannotRevoke) => (AuditResult::Refused, UNABLE),
            Err(error) => {
                log(idempotency, looked, &error);
                (AuditResult::Failed, MAYBE)
            }
        };
        Changed { result, endpoint: details.endpoint, why }
    }
}

fn log(idempotency: &Idempotency, looked: &LookUp, error: &StoreError) {
    let key = looked.storage_key(idempotency);
    tracing::error!(%key, %error, cause = cause(error), "the store failed while a change of the admin page was made");
}
