//! For generated code only. Not a stable API: the macro and this crate are released together.

use std::fmt::Display;

/// Returns `None` of any type, to state the type of an expression that never exists.
pub fn never<T>() -> Option<T> {
    None
}

/// Returns the text of a key or a scope.
pub fn text<T: Text + ?Sized>(value: &T) -> String {
    value.text()
}

/// What may be the key or the scope of a plain function: everything that is `Display`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the `key` or the `scope` of a function, since it does not implement `Display`",
    label = "this is not `Display`",
    note = "name a field that is `Display`, as in `key = order.id`, or write the text with `format!`",
    note = "a function always has a key: if it is an `Option`, let the caller decide what happens without one, and take the value \
            as an argument"
)]
pub trait Text {
    #[doc(hidden)]
    fn text(&self) -> String;
}

#[diagnostic::do_not_recommend]
impl<T: Display + ?Sized> Text for T {
    fn text(&self) -> String {
        self.to_string()
    }
}
