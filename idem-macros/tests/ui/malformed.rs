//! Values, terms and options that are not written as they must be.

use std::time::Duration;

use idem_axum::idempotent;

#[idempotent(crate = "idem_axum")]
async fn crate_quoted(body: String) -> String {
    body
}

#[idempotent(errors = |refusal| render(refusal))]
async fn errors_closure(body: String) -> String {
    body
}

#[idempotent(errors = "render")]
async fn errors_quoted(body: String) -> String {
    body
}

#[idempotent(fingerprint = body + header)]
async fn fingerprint_header_without_name(body: String) -> String {
    body
}

#[idempotent(fingerprint = body - path)]
async fn fingerprint_minus(body: String) -> String {
    body
}

#[idempotent(fingerprint = body | path)]
async fn fingerprint_or(body: String) -> String {
    body
}

#[idempotent(fingerprint = "body" + path)]
async fn fingerprint_string(body: String) -> String {
    body
}

#[idempotent(required = 3)]
async fn flag_with_a_value(body: String) -> String {
    body
}

#[idempotent(header = "Idempotency Key")]
async fn header_characters(body: String) -> String {
    body
}

#[idempotent(header = "")]
async fn header_empty(body: String) -> String {
    body
}

#[idempotent(header = X_KEY)]
async fn header_not_a_string(body: String) -> String {
    body
}

// No header value has spaces at its ends.
#[idempotent(replay_with = header("X-Retry", " no"))]
async fn header_padded() {}

#[idempotent(in_flight = 423)]
async fn in_flight_status_alone(body: String) -> String {
    body
}

#[idempotent(in_flight = wait)]
async fn in_flight_wait_without_duration(body: String) -> String {
    body
}

#[idempotent(fingerprint = json("/a~b"))]
async fn json_pointer_tilde(body: String) -> String {
    body
}

#[idempotent(fingerprint = json("order/id"))]
async fn json_pointer_without_slash(body: String) -> String {
    body
}

#[idempotent(fingerprint = json(/order/id))]
async fn pointer_without_quotes(body: String) -> String {
    body
}

#[idempotent(fingerprint = json())]
async fn json_without_pointers(body: String) -> String {
    body
}

#[idempotent(key = load(&body).await)]
async fn key_await(body: String) -> String {
    body
}

#[idempotent(key = "orders")]
async fn key_constant_text(body: String) -> String {
    body
}

#[idempotent(key = event.id)]
async fn key_constant_without_arguments() {}

#[idempotent(max_response = 1048576)]
async fn max_response_number(body: String) -> String {
    body
}

#[idempotent(ttl = "24h" required)]
async fn missing_comma(body: String) -> String {
    body
}

#[idempotent(fingerprint = body path, required)]
async fn missing_plus(body: String) -> String {
    body
}

#[idempotent(ttl)]
async fn missing_value(body: String) -> String {
    body
}

#[idempotent(ttl =, required)]
async fn missing_value_after_equals(body: String) -> String {
    body
}

#[idempotent(policy = Policy::new())]
async fn policy_call(body: String) -> String {
    body
}

#[idempotent(record = all - (400 + 422))]
async fn record_parentheses(body: String) -> String {
    body
}

#[idempotent(record = all - "422")]
async fn record_quoted_status(body: String) -> String {
    body
}

#[idempotent(record = -400)]
async fn record_starts_with_minus(body: String) -> String {
    body
}

#[idempotent(replay_header = "none")]
async fn replay_header_none_quoted(body: String) -> String {
    body
}

#[idempotent(replay_header = off)]
async fn replay_header_not_a_string(body: String) -> String {
    body
}

#[idempotent(replay_with = header("X-Should-Retry"))]
async fn replay_with_without_a_value(body: String) -> String {
    body
}

#[idempotent(required = false, shadow = false)]
async fn required_false(body: String) -> String {
    body
}

#[idempotent(scope = body.tenant().await)]
async fn scope_await(body: String) -> String {
    body
}

const ORDERS: &str = "orders";

#[idempotent(scope = ("orders", "v1"))]
async fn scope_constant_tuple(body: String) -> String {
    body
}

#[idempotent(scope = ("orders"))]
async fn scope_constant_parentheses(body: String) -> String {
    body
}

#[idempotent(scope = { "orders" })]
async fn scope_constant_block(body: String) -> String {
    body
}

#[idempotent(scope = (ORDERS, path))]
async fn scope_constant_constant(body: String) -> String {
    body
}

#[idempotent(scope = ())]
async fn scope_empty_tuple(body: String) -> String {
    body
}

#[idempotent(scope = (header("X-Tenant"), body.len()))]
async fn scope_keyword_in_a_tuple(body: String) -> String {
    body
}

#[idempotent(scope = "orders")]
async fn scope_string(body: String) -> String {
    body
}

#[idempotent(shadow = "for a week")]
async fn shadow_with_a_value(body: String) -> String {
    body
}

const TTL: Duration = Duration::from_secs(60);

#[idempotent(ttl = TTL)]
async fn ttl_constant(body: String) -> String {
    body
}

#[idempotent(ttl = "1M")]
async fn ttl_month_create(body: String) -> String {
    body
}

#[idempotent(ttl = "1 year")]
async fn ttl_month_other(body: String) -> String {
    body
}

#[idempotent(ttl = "a day")]
async fn ttl_nonsense(body: String) -> String {
    body
}

#[idempotent(ttl = 24)]
async fn ttl_number(body: String) -> String {
    body
}

#[idempotent(ttl = "24")]
async fn ttl_without_unit(body: String) -> String {
    body
}

#[idempotent(ttl: "24h")]
async fn value_after_colon(body: String) -> String {
    body
}

#[idempotent("24h")]
async fn value_alone(body: String) -> String {
    body
}

#[idempotent(fingerprint(body, path))]
async fn value_in_parentheses(body: String) -> String {
    body
}

#[idempotent(fingerprint = body +)]
async fn value_unfinished(body: String) -> String {
    body
}

#[idempotent(record = all - 5xx)]
async fn class_of_statuses(body: String) -> String {
    body
}

#[idempotent(required())]
async fn flag_in_parentheses(body: String) -> String {
    body
}

#[idempotent(required: true)]
async fn flag_with_a_colon(body: String) -> String {
    body
}

#[idempotent(fingerprint = json("$.order.id"))]
async fn json_path(body: String) -> String {
    body
}

#[idempotent(record = [200, 201])]
async fn list_of_statuses(body: String) -> String {
    body
}

#[idempotent(fingerprint = (body, path))]
async fn list_of_terms(body: String) -> String {
    body
}

#[idempotent(scope = body.len() + path)]
async fn scope_as_a_sum(body: String) -> String {
    body
}

fn main() {}
