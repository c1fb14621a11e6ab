//! The key: what the client sends, checked and unquoted, and what the store sees instead of it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::fingerprint::Fingerprint;
use crate::hash::{PartHasher, domain, hex};
use crate::scope::Scope;

/// The longest key that [`Key::parse`] accepts, in characters.
pub const MAX_KEY: usize = 255;

/// A well-formed key: 1 to 255 visible ASCII characters, unquoted; or any text that [`Key::from_text`] took.
///
/// A key with a comma, a semicolon or a quote has to be sent as a structured-field string. In the bare form these would be a
/// list, parameters or half a string, and a proxy may have made them.
///
/// A structured-field string (RFC 8941, section 3.3.3) and the bare form are the same key, and the parameters of the
/// former are ignored, as draft-ietf-httpapi-idempotency-key-header-07, section 2.1, asks:
///
/// ```
/// use idem_runtime::Key;
///
/// assert_eq!(Key::parse(b"\"8e03978e\";v=1").unwrap(), Key::parse(b"8e03978e").unwrap());
/// assert_eq!(Key::parse(br#""a,\"b\";c""#).unwrap().as_str(), r#"a,"b";c"#);
/// assert!(Key::parse(b"a,b").is_err() && Key::parse(b"a;b").is_err());
/// ```
///
/// `Debug` and `Display` show eight hex digits of a hash and never the key, which may be a secret; [`Key::as_str`] is
/// the key itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Arc<str>);

impl Key {
    /// Reads the value of one header line.
    ///
    /// # Errors
    /// [`InvalidKey`] says what is wrong with the value, without repeating it.
    pub fn parse(value: &[u8]) -> Result<Self, InvalidKey> {
        let value = value.trim_ascii();
        let text = match value.split_first() {
            None => return Err(InvalidKey::Empty),
            Some((b'"', rest)) => quoted(rest)?,
            Some(_) => bare(value)?.into(),
        };
        match text.len() {
            0 => Err(InvalidKey::Empty),
            1..=MAX_KEY => Ok(Self(text)),
            _ => Err(InvalidKey::TooLong),
        }
    }

    /// Returns the key that is this text, such as the id of an event. It may have any characters and any length, since stores see
    /// only its hash. An empty text is no key: `None`.
    ///
    /// ```
    /// use idem_runtime::Key;
    ///
    /// assert_eq!(Key::from_text("evt_1"), Key::parse(b"evt_1").ok());
    /// assert!(Key::from_text("Überweisung 7").is_some());
    /// assert_eq!(Key::from_text(""), None);
    /// ```
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        if text.is_empty() { None } else { Some(Self(text.into())) }
    }

    /// Returns the key as the client sent it, without the quotes. It may be a secret: do not log it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Derives the stable child key of one downstream call, made while the request with this `storage_key` and
    /// `fingerprint` runs.
    ///
    /// The same request gives the same child key on every run, and another scope, request or `label` gives another.
    /// It has the form of a UUID (version 8, RFC 9562), 36 characters, which every known API accepts.
    ///
    /// ```
    /// use idem_runtime::Key;
    ///
    /// let key = Key::parse(b"order-1").unwrap();
    /// let charge = key.derive(None, "charge");
    /// assert_eq!(charge, key.derive(None, "charge"));
    /// assert_ne!(charge, key.derive(None, "ship"));
    /// assert_eq!(charge.as_str().len(), 36);
    /// ```
    #[must_use]
    pub fn derive(&self, within: Option<(&StorageKey, &Fingerprint)>, label: &str) -> Self {
        let mut hasher = PartHasher::new(domain::CHILD_KEY);
        hasher.part(b'k', self.0.as_bytes());
        if let Some((storage_key, fingerprint)) = within {
            hasher.part(b's', storage_key.as_bytes());
            hasher.part(b'f', fingerprint.as_bytes());
        }
        hasher.part(b'l', label.as_bytes());
        let mut bytes = hasher.finish();
        bytes[6] = (bytes[6] & 0x0f) | 0x80;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let digits = hex::<16>(&bytes);
        let (a, b, c, d, e) = (&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]);
        Self(format!("{a}-{b}-{c}-{d}-{e}").into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hasher = PartHasher::new(domain::LOGGED_KEY);
        hasher.part(b'k', self.0.as_bytes());
        write!(f, "key#{}", hex::<4>(&hasher.finish()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// The characters a key may have: visible ASCII, `0x21` to `0x7e`.
fn visible(byte: u8) -> bool {
    byte.is_ascii_graphic()
}

/// The characters that a bare key may have.
fn is_bare(byte: u8) -> bool {
    visible(byte) && !matches!(byte, b'"' | b',' | b';')
}

/// The bare form. A comma would be a list, a quote or a semicolon a broken structured field: guessing which key such a
/// value means could join two clients' keys, so they are refused.
fn bare(value: &[u8]) -> Result<&str, InvalidKey> {
    // Before the characters, so that half a megabyte of key is not walked through.
    if value.len() > MAX_KEY {
        return Err(InvalidKey::TooLong);
    }
    // All of them, since a loop that does not stop early looks at many at once.
    if !value.iter().fold(true, |all, &byte| all & is_bare(byte)) {
        return Err(match value.iter().find(|&&byte| !is_bare(byte)) {
            Some(b',') => InvalidKey::List,
            Some(b'"' | b';') => InvalidKey::Syntax,
            _ => InvalidKey::Character,
        });
    }
    std::str::from_utf8(value).map_err(|_| InvalidKey::Character)
}

/// The rest of a structured-field string after its opening quote.
fn quoted(value: &[u8]) -> Result<Arc<str>, InvalidKey> {
    let mut text = String::with_capacity(value.len().min(MAX_KEY));
    let mut bytes = value.iter().copied().enumerate();
    while let Some((at, byte)) = bytes.next() {
        let character = match byte {
            b'"' => {
                parameters(&value[at + 1..])?;
                return Ok(text.into());
            }
            b'\\' => match bytes.next() {
                Some((_, escaped @ (b'"' | b'\\'))) => escaped,
                _ => return Err(InvalidKey::Syntax),
            },
            _ => byte,
        };
        if !visible(character) {
            return Err(InvalidKey::Character);
        }
        if text.len() == MAX_KEY {
            return Err(InvalidKey::TooLong);
        }
        text.push(char::from(character));
    }
    Err(InvalidKey::Unterminated)
}

/// What may follow a structured-field string: `*( ";" *SP key [ "=" bare-item ] )`, RFC 8941, section 3.1.2. The
/// parameters are ignored, but something else, such as the comma of a list, is not.
fn parameters(mut rest: &[u8]) -> Result<(), InvalidKey> {
    while let Some((&first, after)) = rest.split_first() {
        if first != b';' {
            return Err(if first == b',' { InvalidKey::List } else { InvalidKey::Syntax });
        }
        rest = skip(after, |byte| byte == b' ');
        if !rest.first().is_some_and(|&byte| byte.is_ascii_lowercase() || byte == b'*') {
            return Err(InvalidKey::Syntax);
        }
        rest = skip(rest, |byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-' | b'.' | b'*')
        });
        if let Some((b'=', value)) = rest.split_first() {
            rest = bare_item(value)?;
        }
    }
    Ok(())
}

/// Skips one bare item: a string, or a run of the characters that tokens, numbers, booleans and byte sequences have.
fn bare_item(value: &[u8]) -> Result<&[u8], InvalidKey> {
    if let Some((b'"', string)) = value.split_first() {
        let mut bytes = string.iter().enumerate();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'"' => return Ok(&string[at + 1..]),
                b'\\' if !matches!(bytes.next(), Some((_, b'"' | b'\\'))) => return Err(InvalidKey::Syntax),
                b' '..=b'~' => {}
                _ => return Err(InvalidKey::Syntax),
            }
        }
        return Err(InvalidKey::Unterminated);
    }
    let rest = skip(value, |byte| visible(byte) && !matches!(byte, b';' | b',' | b'"'));
    if rest.len() == value.len() { Err(InvalidKey::Syntax) } else { Ok(rest) }
}

fn skip(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> &[u8] {
    let end = bytes.iter().position(|&byte| !wanted(byte)).unwrap_or(bytes.len());
    &bytes[end..]
}

/// What is wrong with a key. The text never repeats the key.
///
/// ```
/// use idem_runtime::{InvalidKey, Key};
///
/// assert_eq!(Key::parse(b"  ").unwrap_err(), InvalidKey::Empty);
/// assert_eq!(Key::parse(b"a, b").unwrap_err(), InvalidKey::List);
/// assert_eq!(Key::parse(b"a b").unwrap_err().to_string(), "the key has a character that is not visible ASCII");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidKey {
    /// Nothing, only spaces, or `""`.
    Empty,
    /// More than 255 characters.
    TooLong,
    /// Fewer characters than the policy asks for.
    TooShort {
        /// The fewest characters the policy accepts.
        min: usize,
    },
    /// A character that is not visible ASCII.
    Character,
    /// A quote without its end.
    Unterminated,
    /// Not one structured-field string.
    Syntax,
    /// A list of keys, or the header sent twice.
    List,
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the key is empty"),
            Self::TooLong => write!(f, "the key is longer than {MAX_KEY} characters"),
            Self::TooShort { min } => write!(f, "the key is shorter than {min} characters"),
            Self::Character => f.write_str("the key has a character that is not visible ASCII"),
            Self::Unterminated => f.write_str("the key has an opening quote without a closing one"),
            Self::Syntax => {
                f.write_str("the key is not one structured-field string, and a bare key has no quote and no semicolon")
            }
            Self::List => f.write_str("there is more than one key, or a comma in a key that is not quoted"),
        }
    }
}

impl std::error::Error for InvalidKey {}

/// What a store finds claims and records by: SHA-256 over namespace, scope and key, each tagged and length-prefixed. So no
/// byte that a client chose reaches a store, and two namespaces or two scopes never meet.
///
/// [`Idempotency::storage_key`](crate::Idempotency::storage_key) makes one in the engine's namespace.
///
/// ```
/// use idem_runtime::{Key, Scope, StorageKey};
///
/// let key = Key::parse(b"order-1").unwrap();
/// let one = StorageKey::new("shop", &Scope::arguments().with(b"tenant-1"), &key);
/// assert_ne!(one, StorageKey::new("shop", &Scope::arguments().with(b"tenant-2"), &key));
/// assert_ne!(one, StorageKey::new("blog", &Scope::arguments().with(b"tenant-1"), &key));
/// assert_eq!(StorageKey::from_bytes(*one.as_bytes()), one);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StorageKey([u8; 32]);

/// Sixteen bytes of a SHA-256 distinguish keys as well as all of them would; equality looks at every byte.
impl Hash for StorageKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if let Some(half) = self.0.first_chunk() {
            state.write_u128(u128::from_ne_bytes(*half));
        }
    }
}

impl StorageKey {
    /// Makes the storage key of `key` within `scope` and `namespace`. An empty namespace is a namespace like any other.
    pub fn new(namespace: &str, scope: &Scope, key: &Key) -> Self {
        let mut hasher = PartHasher::new(domain::STORAGE_KEY);
        if !namespace.is_empty() {
            hasher.part(b'n', namespace.as_bytes());
        }
        if let Some(path) = scope.path() {
            hasher.part(b'p', path);
        }
        hasher.part(b's', scope.owner());
        hasher.part(b'k', key.0.as_bytes());
        Self(hasher.finish())
    }

    /// Makes the storage key of a function without HTTP. Its domain differs from that of [`new`](Self::new), so the two never meet.
    pub(crate) fn once(namespace: &str, scope: &[u8], key: &[u8]) -> Self {
        let mut hasher = PartHasher::new(domain::ONCE_KEY);
        if !namespace.is_empty() {
            hasher.part(b'n', namespace.as_bytes());
        }
        hasher.part(b's', scope);
        hasher.part(b'k', key);
        Self(hasher.finish())
    }

    /// Returns a storage key that was stored earlier.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Eight hex digits: enough to find the lines of one key in a log, too few to look a key up.
impl fmt::Display for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::<4>(&self.0))
    }
}

impl fmt::Debug for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StorageKey({self})")
    }
}

#[cfg(test)]
mod tests;
