//! What the page sends: a key and whose it is, and what is to become of it.

use std::borrow::Cow;
use std::str;

use axum::body::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use idem_runtime::{Idempotency, InvalidKey, Key, Scope, StorageKey};
use serde::Deserialize;

use super::audit::Action;
use idem_axum::private::RecordedResponse;

/// The longest body of a response that a person may write down: as much as an endpoint records if nothing else is declared.
const MAX_BODY: usize = 1024 * 1024;
/// The longest form: a browser sends a line break as the six bytes `%0D%0A`, and no byte of a response as more.
pub(super) const MAX_FORM: usize = 6 * MAX_BODY + 1024 * 1024;

/// The fields as they came. Never logged: the key may be a secret.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    pub(super) token: String,
    pub(super) step: FormStep,
    pub(super) key: String,
    pub(super) source: KeySource,
    pub(super) scope: ScopeKind,
    pub(super) values: String,
    pub(super) header: String,
    pub(super) header_values: String,
    /// Method and path, if they are part of the scope.
    pub(super) path: String,
    pub(super) settle: Settle,
    pub(super) status: String,
    pub(super) content_type: String,
    pub(super) body: String,
    /// What the person saw when they asked for a change.
    pub(super) seen: String,
    /// Where a list continues, in hex digits.
    pub(super) from: String,
}

/// What a button asks for. A change is asked for, shown, and then confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FormStep {
    #[default]
    LookUp,
    Forget,
    ForgetNow,
    Revoke,
    RevokeNow,
    /// Lists the keys whose outcome is unknown.
    Unknown,
    Settle,
    SettleNow,
}

/// Where the endpoint has its key from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum KeySource {
    #[default]
    Header,
    /// From `key = ..`: any text, in which quotes and white space count.
    Text,
}

/// What the declared `scope` of the endpoint is made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ScopeKind {
    #[default]
    Unscoped,
    Values,
    Header,
}

/// What a person found out about an outcome that was unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Settle {
    #[default]
    Unsaid,
    Happened,
    Response,
    DidNotHappen,
}

/// Which key, and whose it is.
pub(super) struct LookUp {
    pub(super) scope: Scope,
    pub(super) key: Key,
}

impl LookUp {
    pub(super) fn storage_key(&self, idempotency: &Idempotency) -> StorageKey {
        idempotency.storage_key(&self.scope, &self.key)
    }
}

/// A field that cannot be used: its `id` in the page, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) field: &'static str,
    pub(super) text: String,
}

impl Mistake {
    fn new(field: &'static str, text: impl Into<String>) -> Self {
        Self { field, text: text.into() }
    }

    /// Of a person who pressed the button and chose nothing.
    pub(super) fn unsaid() -> Self {
        Self::new("settle", "Choose what you found.")
    }
}

impl Fields {
    /// The key as a request would have brought it, in the scope as its endpoint would have made it.
    pub(super) fn look_up(&self) -> Result<LookUp, Mistake> {
        let key = match self.source {
            KeySource::Header => Key::parse(self.key.as_bytes()),
            KeySource::Text => Key::from_text(&self.key).ok_or(InvalidKey::Empty),
        };
        let key = key.map_err(|reason| Mistake::new("key", format!("This cannot be a key: {reason}.")))?;
        let scope = match self.scope {
            ScopeKind::Unscoped => Scope::GLOBAL,
            ScopeKind::Values => with_lines(Scope::arguments(), &self.values, |line| line)
                .ok_or_else(|| Mistake::new("values", "Write each value of the scope on its own line."))?,
            ScopeKind::Header => {
                let name = self.header.trim().to_ascii_lowercase();
                if HeaderName::try_from(&name).is_err() {
                    return Err(Mistake::new("header", "Write the name of the header, such as X-Tenant."));
                }
                let values = match name.as_str() {
                    // Hosts have no case.
                    "host" => Cow::Owned(self.header_values.to_ascii_lowercase()),
                    // HTTP/2 may spread cookies over lines, and together they are one value.
                    "cookie" => {
                        let lines = self.header_values.lines().map(trimmed).filter(|line| !line.is_empty());
                        Cow::Owned(lines.collect::<Vec<_>>().join("; "))
                    }
                    _ => Cow::Borrowed(self.header_values.as_str()),
                };
                with_lines(Scope::header(&name), &values, trimmed).ok_or_else(|| {
                    Mistake::new("header-values", "Write the value that the client sends in the header.")
                })?
            }
        };
        if self.path.trim().is_empty() {
            return Ok(LookUp { scope, key });
        }
        let (method, path) = method_and_path(&self.path).ok_or_else(|| {
            Mistake::new("path", "Write the method and the path as the client sent them, such as POST /orders/7.")
        })?;
        Ok(LookUp { scope: scope.with_path(method.as_str(), &path), key })
    }

    /// The change that was confirmed; `None` of what changes nothing.
    pub(super) fn confirmed(&self) -> Option<Action> {
        match (self.step, self.settle) {
            (FormStep::LookUp | FormStep::Unknown | FormStep::Forget | FormStep::Revoke | FormStep::Settle, _)
            | (FormStep::SettleNow, Settle::Unsaid) => None,
            (FormStep::ForgetNow, _) => Some(Action::Forget),
            (FormStep::RevokeNow, _) => Some(Action::Revoke),
            (FormStep::SettleNow, Settle::Happened) => Some(Action::SettleHappened),
            (FormStep::SettleNow, Settle::Response) => Some(Action::SettleResponse),
            (FormStep::SettleNow, Settle::DidNotHappen) => Some(Action::SettleDidNotHappen),
        }
    }

    /// Where a list continues. `None` at its start.
    pub(super) fn from(&self) -> Result<Option<Bytes>, Mistake> {
        let digits = self.from.as_bytes();
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
        let are_digits = digits.len().is_multiple_of(2) && digits.iter().all(u8::is_ascii_hexdigit);
        let bytes = digits.chunks(2).map(byte).collect::<Option<Vec<u8>>>().filter(|_| are_digits);
        let bytes = bytes.ok_or_else(|| {
            Mistake::new(
                "key",
                "A list does not go on from there. Send the `next` of the part before, or list from the start.",
            )
        })?;
        Ok(Some(Bytes::from(bytes)).filter(|from| !from.is_empty()))
    }

    /// The response that retries shall get.
    pub(super) fn response(&self) -> Result<RecordedResponse, Mistake> {
        let status = self.status.trim().parse().ok().and_then(|status| StatusCode::from_u16(status).ok());
        let status = status
            .filter(|status| (200..=599).contains(&status.as_u16()))
            .ok_or_else(|| Mistake::new("status", "Write the status as a number from 200 to 599, such as 201."))?;
        let body = self.body.replace("\r\n", "\n");
        if body.len() > MAX_BODY {
            return Err(Mistake::new("body", "The body is longer than 1 MiB."));
        }
        let mut headers = HeaderMap::new();
        if !self.content_type.trim().is_empty() {
            let value = HeaderValue::from_str(self.content_type.trim())
                .map_err(|_| Mistake::new("content-type", "Write the type of the body, such as application/json."))?;
            headers.insert(header::CONTENT_TYPE, value);
        }
        Ok(RecordedResponse { status, headers, body: body.into(), ..RecordedResponse::default() })
    }
}

/// Method and path, which may be those of an access log: with a query, and with the version of HTTP. If the path was rewritten on the way,
/// both are part of the scope, with a space between them.
fn method_and_path(text: &str) -> Option<(Method, String)> {
    let mut words = text.split_ascii_whitespace().peekable();
    let method = Method::from_bytes(words.next()?.to_ascii_uppercase().as_bytes()).ok()?;
    let mut paths = Vec::new();
    while let Some(word) = words.next_if(|word| word.starts_with('/')) {
        paths.push(word.parse::<PathAndQuery>().ok()?.path().to_owned());
    }
    let ends = words.next().is_none_or(|version| version.starts_with("HTTP/")) && words.next().is_none();
    (ends && matches!(paths.len(), 1 | 2)).then(|| (method, paths.join(" ")))
}

/// A server takes the white space around the value of a header away.
fn trimmed(line: &str) -> &str {
    line.trim_matches([' ', '\t'])
}

/// Adds each line as a value; `None` if there is none. A line break at the end ends the last line, and browsers send
/// each as `\r\n`.
fn with_lines(scope: Scope, text: &str, value: impl Fn(&str) -> &str) -> Option<Scope> {
    let lines = text.strip_suffix('\n').map_or(text, |rest| rest.strip_suffix('\r').unwrap_or(rest));
    let values = lines.split('\n').map(|line| value(line.strip_suffix('\r').unwrap_or(line)));
    (!text.is_empty()).then(|| values.fold(scope, |scope, value| scope.with(value.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(whose: ScopeKind, fill: impl FnOnce(&mut Fields)) -> Result<Scope, &'static str> {
        let mut fields = Fields { key: "k".into(), scope: whose, ..Fields::default() };
        fill(&mut fields);
        fields.look_up().map(|found| found.scope).map_err(|mistake| mistake.field)
    }

    fn values(text: &str) -> Result<Scope, &'static str> {
        scope(ScopeKind::Values, |fields| fields.values = text.into())
    }

    #[test]
    fn each_line_is_a_value() {
        let both = Scope::arguments().with(b"acme").with(b"7");
        for text in ["acme\n7", "acme\r\n7", "acme\r\n7\r\n", "acme\n7\n"] {
            assert_eq!(values(text), Ok(both.clone()), "{text:?}");
        }
        assert_eq!(values("acme\n\n7"), Ok(Scope::arguments().with(b"acme").with(b"").with(b"7")));
        assert_eq!(values("\r\n"), Ok(Scope::arguments().with(b"")), "one that is empty");
        assert_eq!(values(" acme"), Ok(Scope::arguments().with(b" acme")), "the handler's, as they are");
        assert_eq!(values(""), Err("values"));
    }

    #[test]
    fn a_header_is_named_in_any_case_and_its_values_are_trimmed() {
        let header = |name: &str, text: &str| {
            scope(ScopeKind::Header, |fields| (fields.header, fields.header_values) = (name.into(), text.into()))
        };
        assert_eq!(header(" X-Tenant", "\tacme \t\r\nb"), Ok(Scope::header("x-tenant").with(b"acme").with(b"b")));
        let cookies = || Ok(Scope::header("cookie").with(b"a=1; b=2"));
        assert_eq!([header("Cookie", "a=1; b=2"), header("Cookie", "a=1 \r\n\r\nb=2\r\n")], [cookies(), cookies()]);
        assert_eq!(header("Cookie", "\r\n"), Err("header-values"));
        assert_eq!(header("X Tenant", "acme"), Err("header"));
        assert_eq!(header("X-Tenant", ""), Err("header-values"));
    }

    #[test]
    fn a_key_is_read_as_the_header_is() {
        let key = |text: &str| {
            Fields { key: text.into(), ..Fields::default() }.look_up().map(|found| found.key).map_err(|why| why.field)
        };
        assert_eq!(key("\"abc\"; v=1").unwrap(), key(" abc ").unwrap());
        assert_eq!(key("a b"), Err("key"));
        assert_eq!(key(""), Err("key"));
    }

    #[test]
    fn a_response_is_what_a_server_can_send() {
        let response = |status: &str, content_type: &str| {
            let (status, content_type) = (status.to_owned(), content_type.to_owned());
            Fields { status, content_type, body: "a\r\nb".into(), ..Fields::default() }.response()
        };
        let written = response(" 201 ", "application/json").unwrap();
        assert_eq!((written.status, &written.body[..]), (StatusCode::CREATED, &b"a\nb"[..]));
        assert_eq!(written.headers["content-type"], "application/json");
        assert!(response("204", "").unwrap().headers.is_empty());
        for status in ["", "101", "199", "600", "-1", "two hundred"] {
            assert_eq!(response(status, "").unwrap_err().field, "status", "{status}");
        }
        assert_eq!(response("200", "text/\u{1}").unwrap_err().field, "content-type");
    }
}
