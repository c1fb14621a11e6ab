//! The way of a request to the page: who is there, where it was sent from, and what it asks for.

use std::sync::Arc;

use axum::Form;
use axum::extract::{FromRequest, Request, State};
use axum::response::Response;
use http::StatusCode;

use super::desk::Desk;
use super::form::{Fields, Step};
use super::guard::{Site, Token};
use super::visit::Visit;

/// The page as one comes to it.
pub(super) async fn show(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    match Visit::admit(desk, &parts) {
        Ok(visit) => visit.html(StatusCode::OK, visit.frame().start()),
        Err(refusal) => refusal,
    }
}

/// A form of the page, or a script that looks a key up.
pub(super) async fn submit(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let visit = match Visit::admit(desk, &parts) {
        Ok(visit) => visit,
        Err(refusal) => return refusal,
    };
    let (site, cookie) = (Site::of(&parts), Token::of(&parts.headers));
    let fields = match Form::<Fields>::from_request(Request::from_parts(parts, body), &()).await {
        Ok(Form(fields)) => fields,
        Err(rejection) => return visit.unread(rejection),
    };
    if site == Site::Other {
        return visit
            .refuse(&fields, "This form was sent from another site, so nothing was looked up and nothing changed.")
            .await;
    }
    if fields.step == Step::Unknown {
        return visit.list(&fields).await;
    }
    let looked = match fields.look_up() {
        Ok(looked) => looked,
        Err(mistake) => return visit.mistaken(&fields, &mistake).await,
    };
    match fields.step {
        Step::LookUp | Step::Unknown | Step::Forget | Step::Revoke | Step::Settle => visit.look(&fields, looked).await,
        Step::ForgetNow | Step::RevokeNow | Step::SettleNow => {
            if visit.is_read_only() {
                return visit.refuse(&fields, "This page is for look-ups only, so nothing was changed.").await;
            }
            let brought = cookie.is_some_and(|cookie| cookie.as_str() == fields.token);
            if site == Site::Own && brought {
                visit.change(&fields, looked).await
            } else {
                visit
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
