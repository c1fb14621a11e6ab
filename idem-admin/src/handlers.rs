//! The way of a request to the page: who is there, where it was sent from, and what it asks for.

use std::sync::Arc;

use axum::Form;
use axum::extract::{FromRequest, Request, State};
use axum::response::Response;
use http::StatusCode;

use super::form::{Fields, FormStep};
use super::guard::{Site, Token};
use super::request::AdminRequest;
use super::state::AdminState;

/// The page as one comes to it.
pub(super) async fn show(State(admin): State<Arc<AdminState>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    match AdminRequest::admit(admin, &parts) {
        Ok(asked) => asked.html(StatusCode::OK, asked.frame().start()),
        Err(refusal) => refusal,
    }
}

/// A form of the page, or a script that looks a key up.
pub(super) async fn submit(State(admin): State<Arc<AdminState>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let asked = match AdminRequest::admit(admin, &parts) {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    let (site, cookie) = (Site::of(&parts), Token::of(&parts.headers));
    let fields = match Form::<Fields>::from_request(Request::from_parts(parts, body), &()).await {
        Ok(Form(fields)) => fields,
        Err(rejection) => return asked.unread(rejection),
    };
    if site == Site::Other {
        return asked
            .refuse(&fields, "This form was sent from another site, so nothing was looked up and nothing changed.")
            .await;
    }
    if fields.step == FormStep::Unknown {
        return match fields.from() {
            Ok(from) => asked.list(&fields, from).await,
            Err(mistake) => asked.mistaken(&fields, &mistake).await,
        };
    }
    let looked = match fields.look_up() {
        Ok(looked) => looked,
        Err(mistake) => return asked.mistaken(&fields, &mistake).await,
    };
    match fields.step {
        FormStep::LookUp | FormStep::Unknown | FormStep::Forget | FormStep::Revoke | FormStep::Settle => {
            asked.look(&fields, looked).await
        }
        FormStep::ForgetNow | FormStep::RevokeNow | FormStep::SettleNow => {
            if asked.is_read_only() {
                return asked.refuse(&fields, "This page is for look-ups only, so nothing was changed.").await;
            }
            let brought = cookie.is_some_and(|cookie| cookie.as_str() == fields.token);
            if site == Site::Own && brought {
                asked.change(&fields, looked).await
            } else {
                asked
                    .refuse(
                    &fields,
                    "It could not be checked that this was sent from this page, so nothing was changed. Look the key up again. \
                     If that does not help, let this page have its cookie.",
                    )
                    .await
            }
        }
    }
}
