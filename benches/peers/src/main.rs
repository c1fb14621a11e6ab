//! The side-by-side benchmark with other crates that promise the same, each set up as its own documentation shows it.

mod cratestack;

use std::sync::Arc;

use axum::Router;
use axum::http::header::COOKIE;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum_idempotent::{IdempotentLayer, IdempotentOptions};
use idem_benches::app::{self, Shop};
use idem_benches::subject::{BARE, HANDWRITTEN, IDEM, KeyedBy, PARTS, Subject};
use ruts::store::moka::MokaStore;
use ruts::{CookieOptions, SessionLayer};
use tower_cookies::CookieManagerLayer;

fn main() -> std::process::ExitCode {
    idem_benches::cli::main(&[BARE, IDEM, AXUM_IDEMPOTENT, AXUM_IDEMPOTENT_HASH, IDEMPOTENT, CRATESTACK, PARTS, HANDWRITTEN])
}

/// `axum-idempotent` with the key from the header. It keeps responses in the session, so each request has a cookie.
const AXUM_IDEMPOTENT: Subject = Subject {
    name: "axum-idempotent 0.6, key",
    router: |shop| {
        axum_idempotent(shop, IdempotentOptions::default().use_idempotency_key_header(Some("Idempotency-Key"), false))
    },
    also: Some(cookie),
    marker: Some("idempotency-replayed"),
    ..BARE
};

/// `axum-idempotent` as it is without options: the key is a hash of the request.
const AXUM_IDEMPOTENT_HASH: Subject = Subject {
    name: "axum-idempotent 0.6, hash",
    router: |shop| axum_idempotent(shop, IdempotentOptions::default()),
    keyed_by: KeyedBy::Body,
    ..AXUM_IDEMPOTENT
};

fn axum_idempotent(shop: &Shop, options: IdempotentOptions) -> Router {
    let cookies = CookieOptions::build().name("session").max_age(24 * 60 * 60).path("/");
    // Room for every session of a run, as for every key of ours.
    let store = Arc::new(MokaStore::builder().max_capacity(20_000_000).build());
    app::bare(shop)
        .layer(IdempotentLayer::<MokaStore>::new(options))
        .layer(SessionLayer::new(store).with_cookie_options(cookies))
        .layer(CookieManagerLayer::new())
}

/// A session for each key. With one session for all, each response it keeps makes the next one slower.
fn cookie(key: u64) -> (HeaderName, HeaderValue) {
    let cookie = format!("session={}", session(key));
    // Digits and letters are always a header value.
    (COOKIE, HeaderValue::try_from(cookie).unwrap_or_else(|_| HeaderValue::from_static("")))
}

/// 22 characters of base64, of which the last has four bits to spare.
fn session(key: u64) -> String {
    format!("{key:0>21}A")
}

/// `idempotent` 2 with its layer and its memory store.
const IDEMPOTENT: Subject = Subject {
    name: "idempotent 2.0",
    router: |shop| {
        let Ok(store) = idempotent::memory::MemoryStore::builder().try_build() else { return Router::new() };
        app::bare(shop).layer(idempotent::middleware::IdempotencyLayer::new(store))
    },
    mismatch: Some(StatusCode::BAD_REQUEST),
    ..IDEM
};

/// `cratestack-axum` over a map that this benchmark supplies: it comes without a store for one process.
const CRATESTACK: Subject = Subject { name: "cratestack-axum 0.8", router: cratestack::router, marker: None, ..IDEM };
