//! The scope: whose key it is.

/// Whose one key is: the values that a declared `scope` takes from one request. Part of the storage key, so that two scopes never
/// meet.
///
/// ```
/// use idem_runtime::Scope;
///
/// let tenant = Scope::arguments().with(b"tenant-7");
/// assert_ne!(tenant, Scope::GLOBAL);
/// // The same key on another path is another key.
/// assert_ne!(tenant.clone().with_path("POST", "/orders"), tenant);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Kind and values, each value length-prefixed; empty for the global scope.
    owner: Vec<u8>,
    /// Method and path, each length-prefixed; empty if they do not take part.
    path: Vec<u8>,
}

impl Scope {
    /// One scope for all callers.
    pub const GLOBAL: Self = Self { owner: Vec::new(), path: Vec::new() };

    /// A scope made from values that the handler's arguments gave; add them with [`Scope::with`].
    pub fn arguments() -> Self {
        Self { owner: vec![b'a'], path: Vec::new() }
    }

    /// A scope made from the values of the request header `name`, in any case; add them with [`Scope::with`].
    pub fn header(name: &str) -> Self {
        Self { owner: vec![b'h'], path: Vec::new() }.with(name.to_ascii_lowercase().as_bytes())
    }

    /// Adds a value. The order of values counts, and no two lists of values give the same scope.
    #[must_use]
    pub fn with(mut self, value: &[u8]) -> Self {
        if self.owner.is_empty() {
            self.owner.push(b'g');
        }
        put(&mut self.owner, value);
        self
    }

    /// Returns this scope on one method and one path, in place of any earlier ones: the same key on another path is another
    /// key. `path` is the path as it was sent, without the query.
    #[must_use]
    pub fn with_path(mut self, method: &str, path: &str) -> Self {
        self.path.clear();
        put(&mut self.path, method.as_bytes());
        put(&mut self.path, path.as_bytes());
        self
    }

    /// Returns kind and values.
    pub(crate) fn owner(&self) -> &[u8] {
        &self.owner
    }

    /// Returns method and path; `None` if they do not take part.
    pub(crate) fn path(&self) -> Option<&[u8]> {
        (!self.path.is_empty()).then_some(&self.path)
    }
}

fn put(encoded: &mut Vec<u8>, value: &[u8]) {
    encoded.extend_from_slice(&(value.len() as u64).to_le_bytes());
    encoded.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Key, StorageKey};

    #[test]
    fn no_two_scopes_have_one_storage_key() {
        let key = Key::parse(b"a").unwrap();
        let a = || Scope::arguments().with(b"7");
        let scopes = [
            Scope::GLOBAL,
            Scope::GLOBAL.with_path("POST", "/a"),
            Scope::GLOBAL.with_path("POST", "/b"),
            Scope::GLOBAL.with_path("PUT", "/a"),
            Scope::GLOBAL.with_path("POST/", "a"),
            Scope::arguments(),
            a(),
            a().with_path("POST", "/a"),
            a().with(b"POST").with(b"/a"),
            Scope::header("x").with(b"7"),
            Scope::header("x").with(b"7").with_path("POST", "/a"),
            Scope::GLOBAL.with(b"7"),
            // Its length, 97, is the letter of the arguments.
            Scope::GLOBAL.with(&[&[0, 88, 0, 0, 0, 0, 0, 0, 0][..], &[7; 88]].concat()),
            Scope::arguments().with(b"").with(&[7; 88]),
        ];
        for (index, one) in scopes.iter().enumerate() {
            for other in &scopes[index + 1..] {
                assert_ne!(StorageKey::new("", one, &key), StorageKey::new("", other, &key), "{one:?} {other:?}");
            }
        }
        assert_eq!(Scope::header("X-Tenant"), Scope::header("x-tenant"));
        assert_eq!(a().with_path("POST", "/a"), Scope::arguments().with_path("POST", "/a").with(b"7"), "any order");
    }
}
