//! Names that no option, value or unit has.

use idem_axum::idempotent;

#[idempotent(abandoned = re_run)]
async fn abandoned(body: String) -> String {
    body
}

#[idempotent(fingerprint = method + bdoy)]
async fn fingerprint_term(body: String) -> String {
    body
}

#[idempotent(in_flight = block("5s"))]
async fn in_flight(body: String) -> String {
    body
}

#[idempotent(cache = true)]
async fn option_far(body: String) -> String {
    body
}

#[idempotent(in-flight = reject)]
async fn option_kebab(body: String) -> String {
    body
}

#[idempotent(tll = "24h")]
async fn option_near(body: String) -> String {
    body
}

#[idempotent(key_header = "X-Key")]
async fn option_with_a_word(body: String) -> String {
    body
}

#[idempotent(timout = "30s", keys = body)]
async fn option_timeout(body: String) -> String {
    body
}

#[idempotent(record = all - sucess)]
async fn record_term(body: String) -> String {
    body
}

#[idempotent(replay = status + header)]
async fn replay_term(body: String) -> String {
    body
}

#[idempotent(max_response = "1TiB")]
async fn size_unit(body: String) -> String {
    body
}

#[idempotent(max_response = "1mib")]
async fn size_unit_case(body: String) -> String {
    body
}

#[idempotent(fingerprint = body, path)]
async fn part_after_a_comma(body: String) -> String {
    body
}

#[idempotent(record = success, client_error)]
async fn class_after_a_comma(body: String) -> String {
    body
}

#[idempotent(replay = status, body)]
async fn piece_after_a_comma(body: String) -> String {
    body
}

#[idempotent(scope = body.len(), path)]
async fn scope_after_a_comma(body: String) -> String {
    body
}

#[idempotent(optional, enforced)]
async fn flag_turned_off(body: String) -> String {
    body
}

#[idempotent(lease = "30s", store = redis)]
async fn option_of_the_engine(body: String) -> String {
    body
}

fn main() {}
