//! The key of a request, from its header or from the handler's arguments.

use std::fmt::Display;

use http::{HeaderMap, HeaderName};
use idem_runtime::{InvalidKey, Key};

use crate::policy::Policy;

/// Returns the key of a request; `None` if it has none.
pub(crate) fn key(headers: &HeaderMap, policy: &Policy) -> Result<Option<Key>, InvalidKey> {
    // Looking at every name is cheaper than hashing the wanted one, since requests have few headers.
    let wanted = |(name, _): &(&HeaderName, _)| name.as_str().eq_ignore_ascii_case(policy.header);
    let mut lines = headers.iter().filter(wanted).map(|(_, line)| line);
    let Some(line) = lines.next() else { return Ok(None) };
    // Two lines are refused even if they are equal: a proxy that repeats one line may as well change the other.
    if lines.next().is_some() {
        return Err(InvalidKey::List);
    }
    let key = Key::parse(line.as_bytes())?;
    if key.as_str().len() < policy.min_key {
        return Err(InvalidKey::TooShort { min: policy.min_key });
    }
    Ok(Some(key))
}

/// The value of `key` in the attribute. It is `Display` or an `Option` of something that is, so there are two traits with the same
/// method: for an `Option` the compiler finds [`KeyOfOption`] first, and for everything else [`KeyOfText`].
#[derive(Debug)]
pub struct KeyExpression<'a, T: ?Sized>(pub &'a T);

/// The key that an `Option` is. `None` is no key.
pub trait KeyOfOption<T> {
    /// Returns the key.
    fn expressed_key(&self) -> Option<Key>
    where
        T: KeyText;
}

/// The key that everything else is. An empty text is no key.
pub trait KeyOfText<T: ?Sized> {
    /// Returns the key.
    fn expressed_key(&self) -> Option<Key>
    where
        T: KeyText;
}

impl<T> KeyOfOption<T> for KeyExpression<'_, Option<T>> {
    fn expressed_key(&self) -> Option<Key>
    where
        T: KeyText,
    {
        self.0.as_ref().and_then(KeyText::key)
    }
}

impl<T: ?Sized> KeyOfText<T> for &KeyExpression<'_, T> {
    fn expressed_key(&self) -> Option<Key>
    where
        T: KeyText,
    {
        self.0.key()
    }
}

/// What may be a key: everything that is `Display`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the `key`, since it does not implement `Display`",
    label = "this is neither `Display` nor an `Option` of something that is",
    note = "name a field that is `Display`, as in `key = event.id`, or write the text with `format!`; for a key in a header, write `header = \"Name\"`"
)]
pub trait KeyText {
    #[doc(hidden)]
    fn key(&self) -> Option<Key>;
}

#[diagnostic::do_not_recommend]
impl<T: Display + ?Sized> KeyText for T {
    fn key(&self) -> Option<Key> {
        Key::from_text(&self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(
        clippy::needless_borrow,
        reason = "the generated code borrows, for it does not know which of the two it has"
    )]
    fn an_expression_is_a_text_or_an_option_of_one() {
        let key = |text| Key::from_text(text);
        assert_eq!((&KeyExpression(&7)).expressed_key(), key("7"));
        assert_eq!((&KeyExpression("evt 1")).expressed_key(), key("evt 1"));
        assert_eq!((&KeyExpression(&"evt 1".to_owned())).expressed_key(), key("evt 1"));
        assert_eq!((&KeyExpression(&Some("é"))).expressed_key(), key("é"));
        assert_eq!((&KeyExpression(&Some(&7))).expressed_key(), key("7"));
        assert_eq!((&KeyExpression(&None::<String>)).expressed_key(), None);
        assert_eq!((&KeyExpression(&Some(""))).expressed_key(), None);
        assert_eq!((&KeyExpression("")).expressed_key(), None);
    }
}
