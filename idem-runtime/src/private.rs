//! For generated code only. Not a stable API: the macro and this crate are released together.

/// Returns `None` of any type, to state the type of an expression that never exists.
pub fn never<T>() -> Option<T> {
    None
}
