//! Reads single values: durations, sizes, header names, numbers, paths.
//!
//! Every function takes what to write instead, for its message, and puts the caret on the value.

use crate::errors;
use proc_macro2::Ident;
use std::{fmt::Display, ops::RangeInclusive, time::Duration};
use syn::{Expr, ExprPath, Lit, LitStr, Token, punctuated::Punctuated};

/// Nothing is remembered for longer, so that no clock and no store overflows when it adds this to "now".
const MAX_TIME: Duration = Duration::from_secs(100 * 31_557_600);

/// The statuses of refusals.
pub(crate) const REFUSAL: RangeInclusive<u16> = 400..=599;
/// The statuses that can be recorded, and sent with a replay.
pub(crate) const RECORDED: RangeInclusive<u16> = 200..=599;

fn wrong<T>(value: &Expr, message: impl Display) -> syn::Result<T> {
    Err(syn::Error::new_spanned(value, message))
}

/// The expression itself: a value that went through a `macro_rules!` parameter comes in an invisible group.
pub(crate) fn bare(mut value: &Expr) -> &Expr {
    while let Expr::Group(group) = value {
        value = &group.expr;
    }
    value
}

/// What to add to a message about a value that is no literal, perhaps a constant: an attribute does not see its value.
fn constant(value: &Expr) -> &'static str {
    match bare(value) {
        Expr::Lit(_) | Expr::Unary(_) => "",
        _ => "; a constant belongs in a `const POLICY: Policy`: then write `policy = POLICY`",
    }
}

fn literal(value: &Expr) -> Option<&Lit> {
    match bare(value) {
        Expr::Lit(literal) => Some(&literal.lit),
        _ => None,
    }
}

/// The text, if the value is a string.
pub(crate) fn string(value: &Expr) -> Option<&LitStr> {
    match literal(value) {
        Some(Lit::Str(string)) => Some(string),
        _ => None,
    }
}

/// `true` or `false`
pub(crate) fn boolean(value: &Expr) -> Option<bool> {
    match literal(value) {
        Some(Lit::Bool(boolean)) => Some(boolean.value),
        _ => None,
    }
}

/// A name alone, such as `reject`.
pub(crate) fn word(value: &Expr) -> Option<&Ident> {
    match bare(value) {
        Expr::Path(ExprPath { qself: None, path, .. }) => path.get_ident(),
        _ => None,
    }
}

/// A name with arguments, such as `reject(423)`.
pub(crate) fn call(value: &Expr) -> Option<(&Ident, &Punctuated<Expr, Token![,]>)> {
    match bare(value) {
        Expr::Call(call) => Some((word(&call.func)?, &call.args)),
        _ => None,
    }
}

/// The only argument of a call, as in `wait("5s")`.
pub(crate) fn argument(arguments: &Punctuated<Expr, Token![,]>) -> Option<&Expr> {
    arguments.first().filter(|_| arguments.len() == 1)
}

pub(crate) fn path<'a>(value: &'a Expr, option: &str) -> syn::Result<&'a ExprPath> {
    if let Expr::Path(path) = bare(value) {
        return Ok(path);
    }
    // A policy is a constant, which has a name in capitals.
    let is_name = |name: &String| option != "policy" || name.contains(|letter: char| letter.is_ascii_uppercase());
    match string(value).map(|string| string.value()).filter(is_name) {
        Some(path) => wrong(value, format!("remove the quotes: write `{option} = {path}`")),
        None => wrong(value, format!("expected a path: {}", pointed_at(option))),
    }
}

fn pointed_at(option: &str) -> &'static str {
    match option {
        "errors" => "write `errors = render`, with the name of a `fn(&Refusal) -> Response`",
        "policy" => "write `policy = Policy::STRIPE`, or the name of a `const POLICY: Policy`",
        _ => "write `crate = idem_axum`, with the path of the crate",
    }
}

/// A header name, lowered: that is how `http` wants a static one.
pub(crate) fn header_name(value: &Expr, example: &str) -> syn::Result<String> {
    let Some(string) = string(value) else {
        return wrong(value, format!("expected a header name in quotes: write `{example}`"));
    };
    let name = string.value();
    if name.is_empty() {
        return wrong(value, format!("a header name must not be empty: write `{example}`"));
    }
    match name.chars().find(|&character| !is_token(character)) {
        Some(bad) => wrong(value, format!("{bad:?} is not allowed in a header name: write `{example}`")),
        None => Ok(name.to_ascii_lowercase()),
    }
}

/// What a header name may be made of (RFC 9110, section 5.6.2).
fn is_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(character)
}

/// A header value that every client can read: visible ASCII and spaces, none of them at the ends.
pub(crate) fn header_value(value: &Expr, example: &str) -> syn::Result<String> {
    let Some(string) = string(value) else {
        return wrong(value, format!("expected a header value in quotes: write for example `{example}`"));
    };
    let text = string.value();
    match text.chars().find(|&character| !matches!(character, ' '..='~')) {
        Some(bad) => wrong(value, format!("{bad:?} is not allowed in a header value: remove it")),
        None if text.trim() != text => wrong(value, "a header value must not begin or end with a space: remove it"),
        None => Ok(text),
    }
}

/// A duration, never zero: `zero` is what to say about one that is.
pub(crate) fn duration(value: &Expr, example: &str, zero: &str) -> syn::Result<Duration> {
    let Some(string) = string(value) else {
        return wrong(value, format!("expected a duration in quotes: write `{example}`{}", constant(value)));
    };
    let written = string.value();
    if let Some(unit) = units(&written).find(|unit| !UNITS.contains(unit)) {
        let why = match unit {
            "M" => ": `M` could be minutes or months",
            _ if unit.starts_with("mo") => ": a month has no fixed length",
            _ if unit.starts_with('y') => ": a year has no fixed length",
            _ => "",
        };
        return wrong(
            value,
            format!(
                "unknown unit `{unit}`{why}; write `s`, `m` (minutes), `h`, `d` or `w`, as in \"30d\" or \"1h 30m\""
            ),
        );
    }
    match humantime::parse_duration(&written) {
        Ok(Duration::ZERO) => wrong(value, zero),
        Ok(duration) if duration <= MAX_TIME => Ok(duration),
        Ok(_) | Err(humantime::DurationError::NumberOverflow) => {
            wrong(value, format!("`{written}` is too long: write at most 100 years, which is `\"36500d\"`"))
        }
        Err(_) if !written.is_empty() && written.bytes().all(|byte| byte.is_ascii_digit()) => {
            wrong(value, format!("`{written}` has no unit: write for example `\"{written}s\"` or `\"{written}h\"`"))
        }
        Err(_) => wrong(
            value,
            format!("`{written}` is not a duration: write numbers with units, such as \"90s\", \"24h\" or \"1h 30m\""),
        ),
    }
}

/// The units of durations. None is longer than a week, since months and years have no fixed length.
const UNITS: &[&str] = &[
    "ns", "nsec", "nanos", "us", "usec", "ms", "msec", "millis", "s", "sec", "secs", "second", "seconds", "m", "min",
    "mins", "minute", "minutes", "h", "hr", "hrs", "hour", "hours", "d", "day", "days", "w", "wk", "wks", "week",
    "weeks",
];

/// What is written as units: the letters after each number.
fn units(written: &str) -> impl Iterator<Item = &str> {
    let is_letter = |character: char| character.is_ascii_alphabetic();
    let has_number = written.trim_start().starts_with(|character: char| character.is_ascii_digit());
    written.split(move |character| !is_letter(character)).filter(move |unit| has_number && !unit.is_empty())
}

/// A size in bytes, never zero.
pub(crate) fn size(value: &Expr, example: &str) -> syn::Result<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("B", 1),
        ("kB", 1000),
        ("KB", 1000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
    ];
    let Some(string) = string(value) else {
        return wrong(value, format!("expected a size in quotes: write `{example}`{}", constant(value)));
    };
    let written = string.value().trim().to_owned();
    let digits = written.len() - written.trim_start_matches(|character: char| character.is_ascii_digit()).len();
    let (number, unit) = written.split_at(digits);
    let unit = unit.trim();
    if !number.is_empty() && number.bytes().all(|byte| byte == b'0') {
        return wrong(
            value,
            format!("the size must be larger than zero, or nothing could be replayed: write for example `{example}`"),
        );
    }
    let factor = UNITS.iter().find(|(known, _)| *known == unit).map(|(_, factor)| *factor);
    match (number.is_empty(), factor) {
        (false, Some(factor)) => match number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)) {
            Some(bytes) => Ok(bytes),
            None => wrong(value, format!("`{written}` is too large: write for example `{example}`")),
        },
        (false, None) if unit.is_empty() => {
            wrong(value, format!("`{written}` has no unit: write for example `\"{written}B\"` or `\"{written}KiB\"`"))
        }
        (false, None) if unit.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
            match UNITS.iter().find(|(known, _)| known.eq_ignore_ascii_case(unit)) {
                Some((meant, _)) => wrong(value, format!("unknown unit `{unit}`; did you mean `{meant}`?")),
                None => wrong(value, format!("unknown unit `{unit}`; write {}", errors::one_of(&UNITS.map(|it| it.0)))),
            }
        }
        _ => wrong(value, format!("`{written}` is not a size: write a whole number with a unit, such as \"1MiB\"")),
    }
}

/// The status for a key in flight: a refusal, or an acknowledgement.
pub(crate) fn in_flight_status(value: &Expr, example: &str) -> syn::Result<u16> {
    match number(value, RECORDED, "a status", example) {
        Ok(300..=399) | Err(_) if !is_quoted_number(value) => {
            let message = "expected a status from 400 to 599, or from 200 to 299 to acknowledge the request";
            wrong(value, format!("{message}: write for example `{example}`{}", constant(value)))
        }
        other => other,
    }
}

/// Whether a number is in quotes.
fn is_quoted_number(value: &Expr) -> bool {
    string(value).is_some_and(|string| string.value().parse::<u16>().is_ok_and(|number| RECORDED.contains(&number)))
}

/// A number from a range; `what` says what it is, such as "a status".
pub(crate) fn number(value: &Expr, range: RangeInclusive<u16>, what: &str, example: &str) -> syn::Result<u16> {
    let number = match literal(value) {
        Some(Lit::Int(number)) if number.suffix().is_empty() => number.base10_parse::<u16>().ok(),
        _ => None,
    };
    if let Some(number) = number.filter(|number| range.contains(number)) {
        return Ok(number);
    }
    let quoted = string(value).and_then(|string| string.value().parse().ok());
    match quoted.filter(|number| range.contains(number)) {
        Some(number) => wrong(value, format!("remove the quotes: write `{number}`")),
        None => {
            let (lowest, highest) = (range.start(), range.end());
            wrong(
                value,
                format!("expected {what} from {lowest} to {highest}: write for example `{example}`{}", constant(value)),
            )
        }
    }
}

/// What to say about a word that is none of the `known` ones; `what` says what it is, such as "term".
pub(crate) fn unknown(value: &Expr, what: &str, known: &[&str]) -> syn::Error {
    let name = word(value).or(call(value).map(|(name, _)| name)).map(Ident::to_string);
    let quoted = string(value).map(LitStr::value);
    let message = match (name, quoted) {
        (Some(name), _) if known.contains(&name.as_str()) => format!("`{name}` takes no arguments: write `{name}`"),
        (Some(name), _) => errors::unknown(what, &name, known),
        (None, Some(quoted)) if known.contains(&quoted.as_str()) => format!("remove the quotes: write `{quoted}`"),
        (None, _) if matches!(value, Expr::Paren(_)) => "parentheses have no meaning here: remove them".to_owned(),
        (None, _) => format!("expected a {what}; write {}", errors::one_of(known)),
    };
    syn::Error::new_spanned(value, message)
}

#[cfg(test)]
mod tests;
