//! The rules for the values of a policy. The attribute checks the values that it can see by itself (`value.rs` of idem-macros), so that an
//! error is at its place.
//!
//! Each rule is a `const` function over numbers and text, so that a wrong value in a `const` is a compile error. An error says
//! what is wrong and what to write. Nothing here depends on the rest of the crate.

use std::time::Duration;

/// `Err` says what is wrong with a value, and what to write.
pub(crate) type Check = Result<(), &'static str>;

/// Panics with what is wrong. In a `const` that is a compile error.
#[track_caller]
#[allow(clippy::panic, reason = "a wrong policy is a mistake of the developer")]
pub(crate) const fn require(check: Check) {
    if let Err(wrong) = check {
        panic!("{}", wrong);
    }
}

/// Never recorded, never replayed and never added to a replay, sorted. Framing and hop-by-hop fields (RFC 9110, section 7.6.1)
/// describe a connection that is gone; `Content-Length` is recomputed, since a wrong one desynchronises the connection; the
/// others belong to one exchange, one client or one point in time.
pub(crate) const NEVER_REPLAYED: &[&str] = &[
    "age",
    "alt-svc",
    "authentication-info",
    "clear-site-data",
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-connection",
    "server-timing",
    "set-cookie",
    "set-cookie2",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
    "x-request-id",
];

/// Say what the recorded body is, which variant and version of it, or where its resource is. One text for every replay would be
/// wrong.
const OF_THE_RECORD: &[&str] = &[
    "accept-ranges",
    "content-encoding",
    "content-location",
    "content-range",
    "content-type",
    "etag",
    "last-modified",
    "location",
    "vary",
];

/// Have a meaning in responses, which the value `true` of the marker would replace. So have all names that start
/// with `content-` or `access-control-`.
const WITH_A_MEANING: &[&str] = &[
    "accept-ranges",
    "allow",
    "cache-control",
    "deprecation",
    "etag",
    "expires",
    "idempotency-key",
    "last-modified",
    "link",
    "location",
    "pragma",
    "referrer-policy",
    "retry-after",
    "server",
    "strict-transport-security",
    "sunset",
    "vary",
    "via",
    "warning",
    "x-content-type-options",
    "x-frame-options",
];

/// Nothing is remembered for longer, so that no clock and no store overflows: a hundred years.
pub(crate) const MAX_TIME: Duration = Duration::from_secs(100 * 31_557_600);

pub(crate) const EMPTY_FINGERPRINT: &str = "`fingerprint` needs at least one part: name one, or write `.no_fingerprint()` (`fingerprint = none` in the attribute)";
pub(crate) const REPEATED_PART: &str = "`fingerprint` has one part twice: remove one of the two";
pub(crate) const NO_POINTERS: &str =
    "`Part::JsonPointers` has no pointer: write `&[\"/a\", \"/b/0\"]`, or `Part::Json` for the whole body";
pub(crate) const SCOPE_OF_ARGUMENTS: &str =
    "a policy does not know the handler's arguments: write `scope = user.id` in the attribute";
pub(crate) const NOTHING_RECORDED: &str =
    "`record` needs at least one status: name one, or remove the attribute to leave the endpoint unprotected";
pub(crate) const ADDED_TO_NOTHING: &str =
    "`on` has no status, so the header is never sent: name a status, or remove the header";
pub(crate) const STATUS_WITHOUT_BODY: &str = "`replay_status` is the status that the recorded body is sent with, and `replay` \
     sends no body: add `Replay::BODY` (`body` in the attribute), or remove `replay_status`";

/// A header name: `token`, RFC 9110, section 5.6.2.
pub(crate) const fn header_name(name: &str) -> Check {
    let bytes = name.as_bytes();
    if bytes.is_empty() {
        return Err(
            "a header name must not be empty: write for example `\"Idempotency-Key\"` for the key, or `\"X-Tenant\"` for a scope",
        );
    }
    let mut index = 0;
    while index < bytes.len() {
        let token = bytes[index].is_ascii_alphanumeric()
            || matches!(
                bytes[index],
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        if !token {
            return Err(
                "a header name may have only letters, digits and !#$%&'*+-.^_`|~: write for example `\"X-Tenant\"`",
            );
        }
        index += 1;
    }
    Ok(())
}

/// A header value that every client can read.
pub(crate) const fn header_value(value: &str) -> Check {
    let bytes = value.as_bytes();
    let mut index = 0;
    while index < bytes.len() {
        if bytes[index] < b' ' || bytes[index] > b'~' {
            return Err("a header value may have only visible ASCII and spaces: remove every other character");
        }
        index += 1;
    }
    match bytes {
        [b' ', ..] | [.., b' '] => Err("a header value must not begin or end with a space: remove it"),
        _ => Ok(()),
    }
}

/// The name of a header that a replay may get.
const fn replayable(name: &str) -> Check {
    if let Err(wrong) = header_name(name) {
        return Err(wrong);
    }
    if is_among(name, NEVER_REPLAYED) {
        return Err(
            "this header belongs to one connection or one exchange, and no replay has it: write another name, such as `X-Replay-Info`",
        );
    }
    Ok(())
}

/// The name of a header that is added to replays.
pub(crate) const fn added_header(name: &str) -> Check {
    if let Err(wrong) = replayable(name) {
        return Err(wrong);
    }
    if is_among(name, OF_THE_RECORD) {
        return Err(
            "a replay has this header as it was recorded, and it describes the recorded response: write another name, such as `X-Replay-Info`",
        );
    }
    Ok(())
}

/// The name of the header that marks a replay, with the value `true`.
pub(crate) const fn marker(name: &str) -> Check {
    if let Err(wrong) = replayable(name) {
        return Err(wrong);
    }
    if is_same_name(name, "none") {
        return Err("for no marker write `.no_replay_header()` (`replay_header = none` in the attribute)");
    }
    let has_meaning = is_among(name, WITH_A_MEANING)
        || starts_with(name.as_bytes(), b"content-")
        || starts_with(name.as_bytes(), b"access-control-");
    if has_meaning {
        return Err("responses have this header with another meaning, and the marker would replace a recorded one: \
                    write for example `\"Idempotent-Replayed\"`");
    }
    Ok(())
}

/// A JSON pointer, RFC 6901, section 3.
pub(crate) const fn json_pointer(pointer: &str) -> Check {
    let bytes = pointer.as_bytes();
    if !bytes.is_empty() && bytes[0] != b'/' {
        return Err("a JSON pointer must start with `/`: write `\"/amount\"` for the member `amount`");
    }
    let mut index = 0;
    while index < bytes.len() {
        let escape = bytes[index] != b'~' || (index + 1 < bytes.len() && matches!(bytes[index + 1], b'0' | b'1'));
        if !escape {
            return Err("in a JSON pointer write `~0` for `~`, and `~1` for a `/` inside a name");
        }
        index += 1;
    }
    Ok(())
}

/// The shortest key accepted, in characters.
pub(crate) const fn min_key(characters: usize) -> Check {
    if characters >= 1 && characters <= 255 {
        Ok(())
    } else {
        Err("`min_key` must be 1 to 255 characters: write for example `8`")
    }
}

pub(crate) const fn ttl(ttl: Duration) -> Check {
    if ttl.is_zero() {
        return Err(
            "`ttl` must be longer than zero: write for example `\"24h\"`, or remove the attribute to leave the endpoint unprotected",
        );
    }
    if is_longer(ttl, MAX_TIME) {
        return Err("`ttl` must be at most 100 years: write for example `\"24h\"`, or `Duration::from_secs(86_400)`");
    }
    Ok(())
}

pub(crate) const fn wait(max: Duration) -> Check {
    if max.is_zero() {
        return Err(
            "a wait must be longer than zero: write `InFlight::reject(409)` (`in_flight = reject`) to refuse at once",
        );
    }
    if is_longer(max, MAX_TIME) {
        return Err("a wait must be at most 100 years: write for example `\"5s\"`, or `Duration::from_secs(5)`");
    }
    Ok(())
}

pub(crate) const fn timeout(longest: Duration) -> Check {
    if longest.is_zero() {
        return Err("`timeout` must be longer than zero: write for example `\"30s\"`, or `Duration::from_secs(30)`");
    }
    if is_longer(longest, MAX_TIME) {
        return Err("`timeout` must be at most 100 years: write for example `\"30s\"`, or `Duration::from_secs(30)`");
    }
    Ok(())
}

/// The status for a key in flight: a refusal, or an acknowledgement.
pub(crate) const fn in_flight(status: u16) -> Check {
    if (status >= 200 && status <= 299) || (status >= 400 && status <= 599) {
        Ok(())
    } else {
        Err(
            "the status for a key in flight must be 400 to 599, or 200 to 299 to acknowledge the request: write for example `409`",
        )
    }
}

pub(crate) const fn mismatch(status: u16) -> Check {
    if status >= 400 && status <= 599 {
        Ok(())
    } else {
        Err("`mismatch` must be an error status, 400 to 599: write for example `422`")
    }
}

pub(crate) const fn replay_status(status: u16) -> Check {
    if status >= 200 && status <= 599 {
        Ok(())
    } else {
        Err("`replay_status` must be 200 to 599: write for example `200`")
    }
}

/// One status of a set.
pub(crate) const fn final_status(status: u16) -> Check {
    if status >= 200 && status <= 599 { Ok(()) } else { Err("a status must be 200 to 599: write for example `422`") }
}

pub(crate) const fn max_response(bytes: usize) -> Check {
    if bytes > 0 {
        Ok(())
    } else {
        Err(
            "`max_response` must be more than zero bytes: write `.replay(Replay::STATUS)` (`replay = status`) to record no body",
        )
    }
}

/// Whether two header names are the same, in any case.
pub(crate) const fn is_same_name(name: &str, other: &str) -> bool {
    name.len() == other.len() && starts_with(name.as_bytes(), other.as_bytes())
}

/// Whether two texts are the same, case included.
pub(crate) const fn is_same(text: &str, other: &str) -> bool {
    let (text, other) = (text.as_bytes(), other.as_bytes());
    let mut index = 0;
    while index < text.len() && index < other.len() && text[index] == other[index] {
        index += 1;
    }
    index == text.len() && index == other.len()
}

const fn is_longer(time: Duration, max: Duration) -> bool {
    time.as_secs() > max.as_secs() || (time.as_secs() == max.as_secs() && time.subsec_nanos() > max.subsec_nanos())
}

const fn is_among(name: &str, names: &[&str]) -> bool {
    let mut index = 0;
    while index < names.len() {
        if is_same_name(name, names[index]) {
            return true;
        }
        index += 1;
    }
    false
}

/// Whether `name` starts with `start`, in any case.
const fn starts_with(name: &[u8], start: &[u8]) -> bool {
    let mut index = 0;
    while index < start.len() {
        if index >= name.len() || !name[index].eq_ignore_ascii_case(&start[index]) {
            return false;
        }
        index += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_same_if_length_and_case_are() {
        assert!(is_same("", "") && is_same("/a", "/a"));
        for (text, other) in [("/a", "/ab"), ("/ab", "/a"), ("/a", "/A"), ("", "/"), ("/a", "/b")] {
            assert!(!is_same(text, other), "{text} {other}");
        }
    }

    #[test]
    fn a_json_pointer_is_empty_or_starts_with_a_slash_and_escapes_its_tildes() {
        for good in ["", "/", "/amount", "/a/0", "/a~0b", "/a~1b", "/~01", "/ä"] {
            assert_eq!(json_pointer(good), Ok(()), "{good}");
        }
        for bad in ["amount", "a/b", " /a", "#/a"] {
            assert!(json_pointer(bad).is_err_and(|wrong| wrong.contains("start with `/`")), "{bad}");
        }
        for bad in ["/~", "/a~", "/a~2", "/~~0", "/a~/b"] {
            assert!(json_pointer(bad).is_err_and(|wrong| wrong.contains("~0")), "{bad}");
        }
    }

    #[test]
    fn header_names_and_values_are_those_of_http() {
        assert_eq!(header_name("X-Tenant"), Ok(()));
        for bad in ["", "X Tenant", "X-Tenant:", "é", "a\r\n"] {
            assert!(header_name(bad).is_err(), "{bad:?}");
        }
        for good in ["", "false", "a b", "!~"] {
            assert_eq!(header_value(good), Ok(()), "{good}");
        }
        for bad in [" ", " a", "a ", "\ta", "a\r\nb", "é", "\x7f"] {
            assert!(header_value(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_added_header_replaces_nothing_that_describes_the_recorded_response() {
        for good in ["X-Should-Retry", "Cache-Control", "Retry-After", "Content-Language"] {
            assert_eq!(added_header(good), Ok(()), "{good}");
        }
        for bad in
            NEVER_REPLAYED.iter().chain(OF_THE_RECORD).chain(&["LOCATION", "Content-Length", "ETag", "Vary", "a b"])
        {
            assert!(added_header(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_marker_is_no_header_with_another_meaning() {
        for good in ["Idempotent-Replayed", "Idempotency-Replayed", "X-Cache", "content", "X-Content-Type"] {
            assert_eq!(marker(good), Ok(()), "{good}");
        }
        for bad in [
            "Location",
            "Content-Language",
            "RETRY-AFTER",
            "access-control-allow-origin",
            "Idempotency-Key",
            "Date",
            "none",
            "",
        ] {
            assert!(marker(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_and_durations_have_both_ends() {
        let accepted =
            |check: fn(u16) -> Check| (0..=u16::MAX).filter(|&status| check(status).is_ok()).collect::<Vec<_>>();
        assert_eq!(accepted(in_flight), (200..=299).chain(400..=599).collect::<Vec<_>>());
        assert_eq!(accepted(mismatch), (400..=599).collect::<Vec<_>>());
        assert_eq!(accepted(replay_status), (200..=599).collect::<Vec<_>>());
        assert_eq!(accepted(final_status), (200..=599).collect::<Vec<_>>());
        assert_eq!(accepted(|characters| min_key(characters.into())), (1..=255).collect::<Vec<_>>());
        for check in [ttl, wait, timeout] {
            assert!(check(Duration::ZERO).is_err() && check(Duration::from_nanos(1)).is_ok());
            assert!(check(MAX_TIME).is_ok() && check(MAX_TIME + Duration::from_nanos(1)).is_err());
        }
        assert!(max_response(0).is_err() && max_response(1).is_ok());
    }
}
