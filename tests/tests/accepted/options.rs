//! Every option, alone and together, in every form.

use axum::response::{IntoResponse, Response};
use idem_axum::{Policy, Refusal, idempotent};

const BASE: Policy = Policy::DEFAULT.required();

fn render(refusal: &Refusal) -> Response {
    refusal.status().into_response()
}

macro_rules! handlers {
    ($($name:ident: $(#[idempotent $($options:tt)*])*;)*) => {$($(
        #[idempotent $($options)*]
        async fn $name(body: String) -> String {
            body
        }
    )*)*};
}

handlers! {
    none: #[idempotent];
    nothing: #[idempotent()];
    policy: #[idempotent(policy = BASE)];
    preset: #[idempotent(policy = Policy::STRIPE, ttl = "48h")];
    header: #[idempotent(header = "X-Request-Id")];
    required: #[idempotent(required)];
    required_true: #[idempotent(required = true)];
    shadow: #[idempotent(shadow)];
    shadow_true: #[idempotent(shadow = true)];
    min_key: #[idempotent(min_key = 255)];
    ttl: #[idempotent(ttl = "1h 30m")];
    fingerprint: #[idempotent(fingerprint = method + path + query + body + json + json("/a", "/b/0", "") + header("X"))];
    fingerprint_one: #[idempotent(fingerprint = json("/a~1b/m~0n"))];
    scope_global: #[idempotent(scope = global)];
    scope_path: #[idempotent(scope = path)];
    scope_global_and_path: #[idempotent(scope = (path, global))];
    scope_header_and_path: #[idempotent(scope = (header("X-Tenant"), path))];
    scope_header: #[idempotent(scope = header("X-Tenant"))];
    in_flight: #[idempotent(in_flight = reject)];
    in_flight_status: #[idempotent(in_flight = reject(423))];
    in_flight_acknowledged: #[idempotent(in_flight = reject(202))];
    in_flight_wait: #[idempotent(in_flight = wait("5s"))];
    mismatch: #[idempotent(mismatch = 409)];
    record: #[idempotent(record = all - 400 - 422)];
    record_more: #[idempotent(record = success + redirect + client_error - 404 + server_error - 503)];
    record_one: #[idempotent(record = 201)];
    replay: #[idempotent(replay = body + headers)];
    replay_status: #[idempotent(replay_status = 200)];
    replay_without_status: #[idempotent(replay = body + status, replay_status = 208)];
    replay_header: #[idempotent(replay_header = "X-Replay")];
    replay_header_none: #[idempotent(replay_header = none)];
    replay_with: #[idempotent(replay_with = header("X-Should-Retry", "false", server_error - 503) + header("X-Again", "yes"))];
    abandoned_refuse: #[idempotent(abandoned = refuse)];
    abandoned_rerun: #[idempotent(abandoned = rerun)];
    max_response: #[idempotent(max_response = "64KiB")];
    fingerprint_none: #[idempotent(fingerprint = none)];
    timeout: #[idempotent(timeout = "30s")];
    errors: #[idempotent(errors = render)];
    errors_path: #[idempotent(errors = crate::options::render)];
    adapter: #[idempotent(crate = ::idem_axum)];
    all_of_them: #[idempotent(
        crate = idem_axum,
        errors = self::render,
        max_response = "10MB",
        abandoned = rerun,
        replay_header = none,
        replay_status = 200,
        replay = status + body,
        record = all - 400,
        mismatch = 400,
        in_flight = wait("1500ms"),
        scope = header("X-Tenant"),
        fingerprint = path + body,
        ttl = "7d",
        min_key = 16,
        required,
        header = "Idempotency-Key",
        policy = crate::options::BASE,
    )];
}

/// Values that come through a `macro_rules!` parameter.
macro_rules! with_values {
    ($ttl:expr, $fingerprint:expr, $record:expr, $status:literal, $errors:path) => {
        #[idempotent(ttl = $ttl, fingerprint = $fingerprint, record = $record, mismatch = $status, errors = $errors)]
        async fn through_a_macro(body: String) -> String {
            body
        }
    };
}

with_values!("24h", body + path, all - 400, 409, render);
