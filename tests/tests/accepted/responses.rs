//! Every kind of response, and `?` into it.

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use idem_axum::{Unrecorded, idempotent};

enum AppError {
    NotANumber,
}

impl From<std::num::ParseIntError> for AppError {
    fn from(_: std::num::ParseIntError) -> Self {
        Self::NotANumber
    }
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        StatusCode::BAD_REQUEST.into_response()
    }
}

#[idempotent]
async fn unit() {}

#[idempotent]
async fn tuple() -> (StatusCode, [(&'static str, &'static str); 1], Json<u8>) {
    (StatusCode::CREATED, [("x-order", "1")], Json(1))
}

#[idempotent]
async fn question_mark(body: String) -> Result<Json<u64>, AppError> {
    let id: u64 = body.parse()?;
    Ok(Json(id))
}

#[idempotent]
async fn opaque(body: String) -> impl IntoResponse {
    (StatusCode::ACCEPTED, body)
}

#[idempotent]
async fn opaque_or_error(body: String) -> Result<impl IntoResponse, AppError> {
    if body.is_empty() {
        return Ok("empty".to_owned());
    }
    let id: u64 = body.parse()?;
    Ok(id.to_string())
}

#[idempotent]
async fn either(body: String) -> Result<Response, (Unrecorded, StatusCode)> {
    if body.is_empty() {
        return Err((Unrecorded, StatusCode::SERVICE_UNAVAILABLE));
    }
    Ok(body.into_response())
}

#[idempotent]
async fn diverging() -> Json<u8> {
    std::process::exit(1)
}

#[test]
fn compiles() {
    let _: Router = Router::new()
        .route("/unit", post(unit))
        .route("/tuple", post(tuple))
        .route("/question_mark", post(question_mark))
        .route("/opaque", post(opaque))
        .route("/opaque_or_error", post(opaque_or_error))
        .route("/either", post(either))
        .route("/diverging", post(diverging));
}
