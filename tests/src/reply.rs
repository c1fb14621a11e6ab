//! A response, whatever way it came.

use serde_json::Value;

/// A status, headers in order with their bytes, and a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

/// What differs between two equal responses on their way: framing, the time, and the marks of a replay.
const OF_THE_WAY: &[&str] = &["content-length", "transfer-encoding", "connection", "date", "idempotent-replayed"];

impl Reply {
    /// The value of a header that occurs once.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let values = self.all(name);
        assert!(values.len() <= 1, "`{name}` more than once: {self:?}");
        values.first().map(|value| std::str::from_utf8(value).expect("a header of text"))
    }

    /// Every value of a header, in order.
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        self.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_slice()).collect()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body of text")
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn is_replay(&self) -> bool {
        self.all("idempotent-replayed") == [b"true"]
    }

    /// The `code` of a refusal in problem details.
    pub fn code(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        Some(body.get("code")?.as_str()?.to_owned())
    }

    #[track_caller]
    pub fn assert_refused(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.code().as_deref()), (status, Some(code)), "{self:?}");
        assert!(!self.is_replay(), "{self:?}");
    }

    /// A response of a handler that ran for this request.
    #[track_caller]
    pub fn assert_ran(&self, status: u16) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(!self.is_replay() && self.code().is_none(), "{self:?}");
    }

    /// The same as `first`, byte for byte, and marked.
    #[track_caller]
    pub fn assert_replay_of(&self, first: &Self) {
        assert!(self.is_replay(), "{self:?}");
        assert!(!first.is_replay(), "{first:?}");
        assert_eq!((self.status, &self.body), (first.status, &first.body));
        let mut wanted = first.headers_but_for(OF_THE_WAY);
        if !first.headers.iter().any(|(name, _)| name == "cache-control") {
            wanted.push(("cache-control".into(), b"no-store".into()));
        }
        assert_eq!(self.headers_but_for(OF_THE_WAY), wanted);
    }

    fn headers_but_for(&self, names: &[&str]) -> Vec<(String, Vec<u8>)> {
        self.headers.iter().filter(|(name, _)| !names.contains(&name.as_str())).cloned().collect()
    }
}
