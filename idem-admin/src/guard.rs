//! What keeps other sites out: where a form came from, the token that it brings back, and the headers of every page.
//!
//! The browser of a person who is signed in sends that person's credentials with every request, whatever page asked for it.
//! So a change needs two proofs that it came from this page: the browser says so (`Sec-Fetch-Site`, or `Origin` equal to
//! `Host`), and the form brings back what the page's own cookie says. Neither leans on `SameSite`.

use std::fmt::Write;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

const COOKIE: &str = "idem-admin";

/// Where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Site {
    /// This page, or a person who typed the address.
    Own,
    /// Another site.
    Other,
    /// It does not say. Every browser of this decade says so of a form, so it is no browser.
    Unsaid,
}

impl Site {
    pub(super) fn of(parts: &Parts) -> Self {
        // Trusted first, since the browser compares with the address that it knows, whatever a proxy makes of `Host`.
        if let Some(site) = parts.headers.get("sec-fetch-site") {
            return if matches!(site.as_bytes(), b"same-origin" | b"none") { Self::Own } else { Self::Other };
        }
        let Some(origin) = parts.headers.get(header::ORIGIN) else { return Self::Unsaid };
        let host = parts.headers.get(header::HOST).map(HeaderValue::as_bytes);
        let host = host.or_else(|| parts.uri.authority().map(|authority| authority.as_str().as_bytes()));
        let named = [&b"https://"[..], b"http://"].iter().find_map(|scheme| origin.as_bytes().strip_prefix(*scheme));
        match (named, host) {
            (Some(named), Some(host)) if named.eq_ignore_ascii_case(host) => Self::Own,
            _ => Self::Other,
        }
    }
}

/// What a form brings back: the value of the page's cookie, which no other site can read.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(String);

impl Token {
    /// The token of this browser, if it has one.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        let mut cookies = lines.flat_map(|line| line.split(';')).filter_map(|cookie| cookie.trim().split_once('='));
        let (_, value) = cookies.find(|(name, _)| *name == COOKIE)?;
        let whole = value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
        whole.then(|| Self(value.to_owned()))
    }

    pub(super) fn new() -> Result<Self, getrandom::Error> {
        random().map(Self)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Gives it to the browser, until that is closed.
    pub(super) fn cookie(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(format!("{COOKIE}={}; HttpOnly; SameSite=Strict", self.0)).ok()
    }
}

/// 128 random bits, in hex digits.
pub(super) fn random() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    let mut digits = String::with_capacity(32);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(digits, "{byte:02x}");
    }
    Ok(digits)
}

/// No script at all, no style but the page's own, no frame around it, no form to elsewhere, and nothing kept.
///
/// `no-referrer` would make browsers say `Origin: null` of the page's own forms.
pub(super) fn headers(nonce: &str) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    let policy = HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::VARY, HeaderValue::from_static("accept, cookie")),
    ]
    .into_iter()
}
