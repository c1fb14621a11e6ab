//! What the page was set up with.

use http::request::Parts;
use idem_runtime::Idempotency;

use super::audit::Audit;

/// Says who is there.
pub(super) type Actor = Box<dyn Fn(&Parts) -> Option<String> + Send + Sync>;
/// Writes down what was done.
pub(super) type Hook = Box<dyn Fn(&Audit) + Send + Sync>;

/// Everything that the page was set up with.
pub(super) struct AdminState {
    pub(super) idempotency: Idempotency,
    pub(super) actor: Actor,
    pub(super) title: String,
    pub(super) read_only: bool,
    pub(super) audit: Option<Hook>,
}

impl AdminState {
    pub(super) fn audit(&self, audit: &Audit) {
        audit.log();
        if let Some(hook) = &self.audit {
            hook(audit);
        }
    }
}
