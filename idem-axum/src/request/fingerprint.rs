//! The fingerprint: what of a request must be equal on a retry.

use axum::extract::MatchedPath;
use http::Uri;
use http::request::Parts;
use idem_runtime::{Fingerprint, FingerprintBuilder};
use serde_json::Value;

use super::body::{ReadBody, UnreadableBody};
use super::target::sent_uri;
use super::{Caller, header, json};
use crate::policy::{Part, Policy};

/// The tags of the parts of a fingerprint. Records outlive releases, so the meaning of a tag never changes.
mod tag {
    pub(super) const HANDLER: u8 = b'f';
    pub(super) const METHOD: u8 = b'm';
    pub(super) const TEMPLATE: u8 = b't';
    pub(super) const UNMATCHED: u8 = b'u';
    pub(super) const PATH: u8 = b'p';
    pub(super) const SEEN_PATH: u8 = b'P';
    pub(super) const QUERY: u8 = b'q';
    pub(super) const NO_QUERY: u8 = b'Q';
    pub(super) const AUTHORIZATION: u8 = b'a';
    pub(super) const COOKIE: u8 = b'c';
    pub(super) const HEADER: u8 = b'h';
    pub(super) const HEADER_VALUE: u8 = b'v';
    pub(super) const BODY: u8 = b'b';
    pub(super) const TRUNCATED_BODY: u8 = b'B';
    pub(super) const LONG_BODY: u8 = b'l';
    pub(super) const LONG_TRUNCATED_BODY: u8 = b'L';
    pub(super) const BEYOND_LIMIT: u8 = b'r';
    pub(super) const JSON: u8 = b'j';
    pub(super) const POINTER: u8 = b'o';
    pub(super) const VALUE: u8 = b'x';
    pub(super) const NO_VALUE: u8 = b'X';
}

/// A fingerprint without what is known later: the body, and whether the scope or the caller binds the key.
pub(crate) struct FingerprintInput {
    builder: FingerprintBuilder,
}

impl FingerprintInput {
    /// Everything but the body. Taken before the first extractor runs, since an extractor may change the parts. `rewritten` is what
    /// [`rewritten_path`](super::rewritten_path) returned.
    pub(crate) fn new(parts: &Parts, policy: &Policy, rewritten: Option<&str>) -> Self {
        let mut builder = Fingerprint::builder();
        // Handler and endpoint always take part: a key used on one endpoint is refused on another of the same scope, and two
        // services that share a store refuse each other's keys.
        builder.part(tag::HANDLER, &policy.handler_hash);
        // As it was sent, and as the handler sees it: a layer between two routers may have rewritten it for another header.
        let (uri, seen) = (sent_uri(parts), &parts.uri);
        builder.part(tag::METHOD, parts.method.as_str().as_bytes());
        let template = parts.extensions.get::<MatchedPath>();
        match template {
            Some(template) => builder.part(tag::TEMPLATE, template.as_str().as_bytes()),
            // A fallback has no template.
            None => builder.part(tag::UNMATCHED, uri.path().as_bytes()),
        }
        // In the order of this list, whatever the order of the terms was.
        if policy.declares(Part::Path) {
            builder.part(tag::PATH, uri.path().as_bytes());
        }
        if (policy.declares(Part::Path) || template.is_none())
            && let Some(seen) = rewritten
        {
            builder.part(tag::SEEN_PATH, seen.as_bytes());
        }
        if policy.declares(Part::Query) {
            query(&mut builder, uri);
            if seen.query() != uri.query() {
                query(&mut builder, seen);
            }
        }
        declared_headers(&mut builder, parts, policy);
        Self { builder }
    }

    /// Binds the caller, if no scope does.
    pub(crate) fn bind_caller(&mut self, caller: &Caller) {
        match caller {
            Caller::Authorization(values) => {
                for value in values {
                    self.builder.part(tag::AUTHORIZATION, value.as_bytes());
                }
            }
            Caller::Cookie(cookies) => self.builder.part(tag::COOKIE, cookies),
        }
    }

    /// Adds the body, or the start of one that could not be read to its end.
    pub(crate) fn body(&mut self, body: &ReadBody, policy: &Policy) {
        if !body.is_whole() {
            return self.bytes(tag::TRUNCATED_BODY, tag::LONG_TRUNCATED_BODY, body);
        }
        if policy.declares(Part::Body) {
            self.bytes(tag::BODY, tag::LONG_BODY, body);
        }
        let whole = policy.declares(Part::Json);
        // Most policies have no part of JSON, and then the lists below are not made.
        if !whole && !policy.fingerprint.iter().any(|part| !part.pointers().is_empty()) {
            return;
        }
        let mut pointers: Vec<&str> = policy.fingerprint.iter().flat_map(Part::pointers).copied().collect();
        pointers.sort_unstable();
        pointers.dedup();
        let body = &body.bytes();
        let Some(value) = json::parse(body) else {
            self.builder.part(tag::BODY, body);
            return;
        };
        if whole {
            self.json(tag::JSON, &value, body);
        }
        for pointer in pointers {
            self.builder.part(tag::POINTER, pointer.as_bytes());
            match value.pointer(pointer) {
                Some(value) => self.json(tag::VALUE, value, body),
                None => self.builder.part(tag::NO_VALUE, &[]),
            }
        }
    }

    /// Adds what an extractor without a limit has read of a body above the limit.
    pub(crate) fn beyond_limit(&mut self, body: &UnreadableBody) {
        if let Some(digest) = body.digest_beyond() {
            self.builder.part(tag::BEYOND_LIMIT, &digest);
        }
    }

    /// Adds the bytes of a body, or the hash of a long one.
    fn bytes(&mut self, short: u8, long: u8, body: &ReadBody) {
        match body.digest() {
            Some(digest) => self.builder.part(long, &digest),
            None => self.builder.part(short, &body.bytes()),
        }
    }

    /// Adds a value in its canonical form, or the whole body if it has none.
    fn json(&mut self, tag: u8, value: &Value, body: &[u8]) {
        match json::canonical(value) {
            Some(canonical) => self.builder.part(tag, &canonical),
            None => self.builder.part(tag::BODY, body),
        }
    }

    pub(crate) fn finish(self) -> Fingerprint {
        self.builder.finish()
    }
}

fn query(builder: &mut FingerprintBuilder, uri: &Uri) {
    match uri.query() {
        Some(query) => builder.part(tag::QUERY, query.as_bytes()),
        None => builder.part(tag::NO_QUERY, &[]),
    }
}

fn declared_headers(builder: &mut FingerprintBuilder, parts: &Parts, policy: &Policy) {
    let name_of = |part: &Part| if let Part::Header(name) = part { Some(name.to_ascii_lowercase()) } else { None };
    // As above: most policies have no header.
    if !policy.fingerprint.iter().any(|part| matches!(part, Part::Header(_))) {
        return;
    }
    let mut names: Vec<String> = policy.fingerprint.iter().filter_map(name_of).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        builder.part(tag::HEADER, name.as_bytes());
        for value in header::values(parts, &name) {
            builder.part(tag::HEADER_VALUE, &value);
        }
    }
}
