//! One request of a known person, and its response.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::FormRejection;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{self, HeaderValue};
use http::request::Parts;
use idem_runtime::tracing_context::in_current_context;
use idem_runtime::{StorageKey, StoreError};
use maud::Markup;
use serde_json::{Value, json};

use super::audit::{Action, Audit, AuditResult, cause};
use super::change::{Change, Changed, OTHERWISE};
use super::form::{Fields, FormStep, LookUp, Mistake, Settle};
use super::guard::{self, Token};
use super::key_details::KeyDetails;
use super::list::UnknownPage;
use super::page::{Frame, Notice};
use super::state::AdminState;

const BROKE: &str =
    "Something broke after the change was begun, so it is not known whether it was made. Look the key up again.";

const UNWRITTEN: &str =
    "Something broke, or the look-up could not be audited, so nothing is shown. Nothing was changed.";
const REFUSED_UNWRITTEN: &str = "Nothing was changed, and that this was refused could not be audited.";

pub(super) struct AdminRequest {
    admin: Arc<AdminState>,
    actor: String,
    token: Token,
    /// Whether the browser has the token already.
    known: bool,
    nonce: String,
    /// Whether it is a script, which wants JSON.
    json: bool,
}

impl AdminRequest {
    #[allow(clippy::result_large_err, reason = "a response is what the handler returns")]
    pub(super) fn admit(admin: Arc<AdminState>, parts: &Parts) -> Result<Self, Response> {
        let Some(actor) = (admin.actor)(parts).filter(|actor| !actor.trim().is_empty()) else {
            // No error, since any request can cause it.
            tracing::warn!(
                "the admin page was asked for by a request without an operator, as its `actor` says, so the request was refused; mount its \
                 router behind your authentication"
            );
            let stranger = "You are not signed in, as far as this page knows, so it shows nothing.\n";
            return Err((StatusCode::FORBIDDEN, [(header::CACHE_CONTROL, "no-store")], stranger).into_response());
        };
        let known = Token::of(&parts.headers);
        let is_known = known.is_some();
        let made = known.map_or_else(Token::new, Ok).and_then(|token| Ok((token, guard::random()?)));
        let (token, nonce) = made.map_err(|error| {
            tracing::error!(%error, "the admin page got no random numbers, so the request was refused");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        })?;
        let accepts = parts.headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
        let json = accepts.flat_map(|line| line.split(',')).any(|range| range.trim().starts_with("application/json"));
        Ok(Self { admin, actor, token, known: is_known, nonce, json })
    }

    pub(super) fn frame(&self) -> Frame<'_> {
        let AdminState { title, read_only, .. } = &*self.admin;
        Frame { title, actor: &self.actor, nonce: &self.nonce, token: &self.token, read_only: *read_only }
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.admin.read_only
    }

    /// Shows the state of a key, or asks whether it is to be changed.
    pub(super) async fn look(&self, fields: &Fields, looked: LookUp) -> Response {
        let key = looked.storage_key(&self.admin.idempotency);
        let (admin, actor) = (Arc::clone(&self.admin), self.actor.clone());
        let task = async move {
            let found = KeyDetails::of(&admin.idempotency, &looked).await;
            let (result, endpoint) = match &found {
                Ok(Some(details)) => (AuditResult::Done, details.endpoint.clone()),
                Ok(None) => (AuditResult::Absent, None),
                Err(_) => (AuditResult::Failed, None),
            };
            admin.audit(&Audit { actor, action: Action::LookUp, key: Some(key), endpoint, result });
            found
        };
        let Some(found) = apart(task).await else {
            tracing::error!(%key, "a look-up on the admin page, or the hook that audits it, panicked");
            return self.broken(fields, UNWRITTEN);
        };
        match found {
            Ok(Some(details)) if self.json => self.structured(StatusCode::OK, "application/json", &details.json()),
            Ok(Some(details)) => {
                let (status, page) = self.asked(fields, &details);
                self.html(status, page)
            }
            Ok(None) if self.json => self.problem(StatusCode::NOT_FOUND, "This key is free in this scope."),
            Ok(None) => self.html(StatusCode::NOT_FOUND, self.frame().absent(fields, None)),
            Err(error) => self.unknown(fields, key, &error),
        }
    }

    /// Lists keys whose outcome is unknown.
    pub(super) async fn list(&self, fields: &Fields, from: Option<Bytes>) -> Response {
        let (admin, actor) = (Arc::clone(&self.admin), self.actor.clone());
        let task = async move {
            let listed = UnknownPage::of(&admin.idempotency, from).await;
            let result = if listed.is_ok() { AuditResult::Done } else { AuditResult::Failed };
            admin.audit(&Audit { actor, action: Action::ListUnknown, key: None, endpoint: None, result });
            listed
        };
        match apart(task).await {
            Some(Ok(listed)) if self.json => self.structured(StatusCode::OK, "application/json", &listed.json()),
            Some(Ok(listed)) => self.html(StatusCode::OK, self.frame().list(&listed)),
            Some(Err(error)) => {
                tracing::error!(%error, cause = cause(&error), "the store does not tell the admin page whose outcome is unknown");
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let why = match error {
                    StoreError::CannotInspect => "The store of this service cannot list its keys.",
                    _ => "The store could not be asked. Try again in a moment.",
                };
                if self.json {
                    self.problem(status, why)
                } else {
                    self.html(status, self.frame().unknown(fields, why, None))
                }
            }
            None => {
                tracing::error!("a list on the admin page, or the hook that audits it, panicked");
                self.broken(fields, UNWRITTEN)
            }
        }
    }

    fn asked(&self, fields: &Fields, details: &KeyDetails) -> (StatusCode, Markup) {
        let frame = self.frame();
        let is_asked_for = matches!(fields.step, FormStep::Forget | FormStep::Revoke | FormStep::Settle);
        if is_asked_for && !self.is_read_only() && !fields.seen.is_empty() && fields.seen != details.seen() {
            return (StatusCode::CONFLICT, frame.found(fields, details, Some(Notice::Refused(OTHERWISE)), None));
        }
        let page = match (fields.step, fields.settle) {
            _ if self.is_read_only() => frame.found(fields, details, None, None),
            (FormStep::Forget, _) if details.can_be_forgotten() => frame.confirm_forget(fields, details),
            (FormStep::Revoke, _) if details.can_be_revoked() => frame.confirm_revoke(fields, details),
            (FormStep::Settle, Settle::Unsaid) => frame.found(fields, details, None, Some(&Mistake::unsaid())),
            (FormStep::Settle, Settle::Response) if details.can_be_settled() => match fields.response() {
                Ok(response) => frame.confirm_settle(fields, details, Some(&response)),
                Err(mistake) => frame.found(fields, details, None, Some(&mistake)),
            },
            (FormStep::Settle, _) if details.can_be_settled() => frame.confirm_settle(fields, details, None),
            _ => frame.found(fields, details, None, None),
        };
        (StatusCode::OK, page)
    }

    /// Makes a change that was confirmed. In its own task, so that it is made and audited to the end even if the browser
    /// leaves.
    pub(super) async fn change(&self, fields: &Fields, looked: LookUp) -> Response {
        let change = match Change::of(fields) {
            Ok(change) => change,
            // The page sends nothing of the kind.
            Err(mistake) => return self.refuse(fields, &mistake.text).await,
        };
        let (action, key) = (change.action, looked.storage_key(&self.admin.idempotency));
        let (admin, actor) = (Arc::clone(&self.admin), self.actor.clone());
        let task = async move {
            let Changed { result, endpoint, why } = change.make(&admin.idempotency, &looked).await;
            admin.audit(&Audit { actor, action, key: Some(key), endpoint, result });
            (result, why, KeyDetails::of(&admin.idempotency, &looked).await)
        };
        let Some((result, text, now)) = apart(task).await else {
            tracing::error!(%key, %action, "a change on the admin page, or the hook that audits it, panicked");
            return self.broken(fields, BROKE);
        };
        let (status, notice) = match result {
            AuditResult::Done => (StatusCode::OK, Notice::Done(action.done())),
            AuditResult::Failed => (StatusCode::SERVICE_UNAVAILABLE, Notice::Refused(text)),
            AuditResult::Refused | AuditResult::Absent => (StatusCode::CONFLICT, Notice::Refused(text)),
        };
        let page = match now {
            Ok(Some(details)) => self.frame().found(fields, &details, Some(notice), None),
            Ok(None) => self.frame().absent(fields, Some(notice)),
            // What came of the change is known, even so.
            Err(error) => self.frame().unknown(fields, why(&error), Some(notice)),
        };
        self.html(status, page)
    }

    /// A field that cannot be used.
    pub(super) async fn mistaken(&self, fields: &Fields, mistake: &Mistake) -> Response {
        if !self.audit_refused(fields).await {
            return self.broken(fields, REFUSED_UNWRITTEN);
        }
        let status = StatusCode::BAD_REQUEST;
        if self.json {
            self.problem(status, &mistake.text)
        } else {
            self.html(status, self.frame().again(fields, mistake))
        }
    }

    /// Something that this page does not do.
    pub(super) async fn refuse(&self, fields: &Fields, text: &str) -> Response {
        if !self.audit_refused(fields).await {
            return self.broken(fields, REFUSED_UNWRITTEN);
        }
        let status = StatusCode::FORBIDDEN;
        if self.json {
            self.problem(status, text)
        } else {
            self.html(status, self.frame().failed(fields, "Not done", text))
        }
    }

    /// Writes down that a change was not let through, and says whether that worked.
    async fn audit_refused(&self, fields: &Fields) -> bool {
        let Some(action) = fields.confirmed() else { return true };
        let key = fields.look_up().ok().map(|looked| looked.storage_key(&self.admin.idempotency));
        let (admin, actor) = (Arc::clone(&self.admin), self.actor.clone());
        let audit = Audit { actor, action, key, endpoint: None, result: AuditResult::Refused };
        let written = apart(async move { admin.audit(&audit) }).await.is_some();
        if !written {
            tracing::error!(%action, "the hook that audits the admin page panicked");
        }
        written
    }

    /// A form that is none, or too long.
    pub(super) fn unread(&self, rejection: FormRejection) -> Response {
        if self.json {
            self.problem(rejection.status(), &rejection.body_text())
        } else {
            self.sealed(rejection.into_response())
        }
    }

    /// Something panicked.
    fn broken(&self, fields: &Fields, text: &str) -> Response {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        if self.json {
            self.problem(status, text)
        } else {
            self.html(status, self.frame().failed(fields, "Not known", text))
        }
    }

    /// The store does not tell the state of the key.
    fn unknown(&self, fields: &Fields, key: StorageKey, error: &StoreError) -> Response {
        tracing::error!(%key, %error, cause = cause(error), "the store does not tell the admin page the state of a key");
        let status = StatusCode::SERVICE_UNAVAILABLE;
        if self.json {
            self.problem(status, why(error))
        } else {
            self.html(status, self.frame().unknown(fields, why(error), None))
        }
    }

    pub(super) fn html(&self, status: StatusCode, page: Markup) -> Response {
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        self.sealed((status, [(header::CONTENT_TYPE, html)], page.into_string()).into_response())
    }

    /// Problem details, RFC 9457.
    fn problem(&self, status: StatusCode, detail: &str) -> Response {
        let problem = json!({ "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail });
        self.structured(status, "application/problem+json", &problem)
    }

    fn structured(&self, status: StatusCode, kind: &'static str, value: &Value) -> Response {
        let kind = HeaderValue::from_static(kind);
        self.sealed((status, [(header::CONTENT_TYPE, kind)], value.to_string()).into_response())
    }

    /// Adds what keeps others out.
    pub(super) fn sealed(&self, mut response: Response) -> Response {
        response.headers_mut().extend(guard::headers(&self.nonce));
        if let Some(cookie) = self.token.cookie().filter(|_| !self.known && !self.json) {
            response.headers_mut().insert(header::SET_COOKIE, cookie);
        }
        response
    }
}

/// Runs a separate task, which runs to its end even if the browser leaves. `None` if it panicked.
async fn apart<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> Option<T> {
    tokio::spawn(in_current_context(task)).await.ok()
}

/// Why the state of a key is not known, for a person.
fn why(error: &StoreError) -> &'static str {
    match error {
        StoreError::CannotInspect => "The store of this service cannot tell the state of a key.",
        StoreError::Unreadable(_) => {
            "The value of this key cannot be read: it is damaged, or was written by a later version. A retry does not \
             run."
        }
        _ => "The store could not be asked. Try again in a moment.",
    }
}
