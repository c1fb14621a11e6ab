//! Generated code is under the lints of the crate it is in.

#![deny(
    warnings,
    unused,
    nonstandard_style,
    let_underscore,
    rust_2018_idioms,
    deprecated_safe,
    elided_lifetimes_in_paths,
    explicit_outlives_requirements,
    missing_debug_implementations,
    missing_docs,
    redundant_lifetimes,
    single_use_lifetimes,
    trivial_casts,
    trivial_numeric_casts,
    unit_bindings,
    unnameable_types,
    unreachable_pub,
    unused_import_braces,
    unused_lifetimes,
    unused_qualifications,
    unused_results,
    variant_size_differences
)]
#![forbid(unsafe_code)]
#![no_implicit_prelude]

/// Creates an order.
#[::idem_axum::idempotent(required, ttl = "1h", fingerprint = body, scope = tenant, record = all - 400)]
pub async fn create(
    ::axum::extract::Path(tenant): ::axum::extract::Path<u64>,
    mut body: ::std::string::String,
) -> ::std::string::String {
    body.push('.');
    body
}

/// Says hello.
#[::idem_axum::idempotent]
pub async fn hello() -> &'static str {
    "hello"
}

/// To be done.
#[::idem_axum::idempotent]
pub async fn unfinished(_body: ::std::string::String) -> &'static str {
    ::std::todo!()
}

/// What is expected of the function need not be so of the generated one.
#[::idem_axum::idempotent(scope = tenant)]
#[expect(clippy::unused_async, reason = "axum calls async functions only")]
pub async fn expected(
    #[expect(unused_variables, reason = "it is there for its extractor")] uri: ::axum::http::Uri,
    ::axum::extract::Path(tenant): ::axum::extract::Path<u64>,
) {
}

#[test]
fn compiles() {
    let app: ::axum::Router = ::axum::Router::new()
        .route("/create/{tenant}", ::axum::routing::post(create))
        .route("/hello", ::axum::routing::post(hello))
        .route("/expected/{tenant}", ::axum::routing::post(expected))
        .route("/unfinished", ::axum::routing::post(unfinished));
    ::core::mem::drop(app);
}
