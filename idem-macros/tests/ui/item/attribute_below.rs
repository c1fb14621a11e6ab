//! Attributes that read the handler's arguments do not find them below.
use axum::{Extension, extract::Path};
use idem_axum::idempotent;

#[derive(Clone)]
struct Claims {
    tenant: u64,
}

#[idempotent]
#[tracing::instrument(skip_all, fields(tenant = %claims.tenant))]
async fn traced(Extension(claims): Extension<Claims>) -> String {
    claims.tenant.to_string()
}

#[idempotent]
#[utoipa::path(post, path = "/orders/{id}", params(("id" = u64, Path)), responses((status = 200)))]
async fn described(Path(id): Path<u64>) -> String {
    id.to_string()
}

fn main() {}
