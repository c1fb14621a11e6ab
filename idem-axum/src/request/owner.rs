//! Whose key it is: the caller, or the declared `scope`, which is `global`, `path`, a header or values of the handler's arguments.

use std::fmt::Display;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, header};
use idem_runtime::Scope;

use super::header as declared_header;
use super::target::sent_uri;
use crate::policy::{Binding, Policy};

/// A scope made from the handler's arguments. It is owned, so that the handler may take the arguments.
#[derive(Debug)]
pub struct ScopeValue(Scope);

/// What an expression of `scope` may be: everything that is `Display`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be part of `scope`, since it does not implement `Display`",
    label = "this is not `Display`",
    note = "name a field that is `Display`, as in `scope = user.id`, or write the text with `format!`; for a header, write `scope = header(\"Name\")`",
    note = "if it is an `Option`, let an extractor reject a request without the value: one default for all of them would make them one caller"
)]
pub trait ScopePart {
    #[doc(hidden)]
    fn text(&self) -> String;
}

#[diagnostic::do_not_recommend]
impl<T: Display> ScopePart for T {
    fn text(&self) -> String {
        self.to_string()
    }
}

/// Evaluates the expressions of `scope`.
pub fn scope(values: &[&dyn ScopePart]) -> ScopeValue {
    ScopeValue(values.iter().fold(Scope::arguments(), |scope, value| scope.with(value.text().as_bytes())))
}

/// Whose key it is, as far as the head of the request says. Never printed: it has the caller's credentials.
pub(crate) struct KeyOwner {
    /// `None` if only the arguments or the caller say it.
    declared: Option<Scope>,
    /// Counts unless there is a scope.
    caller: Caller,
    /// Method and path as sent, if they are part of the scope. If the path was rewritten, both paths, with a space between them.
    path: Option<Box<(Method, String)>>,
}

/// How a caller is known without a scope: the values of one header, bound through the fingerprint.
pub(crate) enum Caller {
    /// `Authorization`. Without any values the caller is not known at all.
    Authorization(Vec<HeaderValue>),
    /// `Cookie`, for a request without `Authorization`.
    Cookie(Vec<u8>),
}

impl KeyOwner {
    /// Returns whose key it is by the policy, from the head of the request as it arrived. `rewritten` is what
    /// [`rewritten_path`](super::rewritten_path) returned.
    pub(crate) fn new(parts: &Parts, policy: &Policy, rewritten: Option<&str>) -> Self {
        let declared = match policy.scope.binding() {
            Binding::Nothing => Some(Scope::GLOBAL),
            // Without the header the key can only be the caller's.
            Binding::Header(name) => header_scope(parts, name),
            // The generated function evaluates the expression later, and its value counts.
            Binding::Arguments | Binding::Caller => None,
        };
        let path = || {
            let sent = sent_uri(parts).path();
            // No path has a space.
            let path = rewritten.map_or_else(|| sent.to_owned(), |seen| format!("{sent} {seen}"));
            Box::new((parts.method.clone(), path))
        };
        Self { declared, caller: Caller::new(&parts.headers), path: policy.scope.has_path().then(path) }
    }

    /// Returns the scope, with the value of the arguments if there is one, and the caller if the key is bound to it.
    pub(crate) fn scope(self, arguments: Option<ScopeValue>) -> (Scope, Option<Caller>) {
        let Self { declared, caller, path } = self;
        let (scope, caller) = match arguments.map(|ScopeValue(scope)| scope).or(declared) {
            Some(scope) => (scope, None),
            None => (Scope::GLOBAL, Some(caller)),
        };
        match path.as_deref() {
            Some((method, path)) => (scope.with_path(method.as_str(), path), caller),
            None => (scope, caller),
        }
    }
}

fn header_scope(parts: &Parts, name: &str) -> Option<Scope> {
    let values: Vec<_> = declared_header::values(parts, name).collect();
    let says_something = values.iter().any(|value| !is_blank(value));
    says_something.then(|| values.iter().fold(Scope::header(name), |scope, value| scope.with(value)))
}

/// Returns whether a line of a header says nothing, so that no caller is known by it.
fn is_blank(line: &[u8]) -> bool {
    line.trim_ascii().is_empty()
}

impl Caller {
    fn new(headers: &HeaderMap) -> Self {
        let authorization: Vec<_> = headers.get_all(header::AUTHORIZATION).iter().cloned().collect();
        if authorization.iter().any(|line| !is_blank(line.as_bytes())) {
            return Self::Authorization(authorization);
        }
        declared_header::cookies(headers).map_or_else(|| Self::Authorization(Vec::new()), Self::Cookie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Scope as DeclaredScope;
    use http::Request;

    fn owner(policy: &Policy) -> KeyOwner {
        let request = Request::put("/orders/%37?q=1").header("authorization", "alice").header("x-tenant", "acme");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        KeyOwner::new(&parts, policy, None)
    }

    #[test]
    fn a_path_is_beside_every_scope_and_binds_nothing_itself() {
        let value = || Some(scope(&[&"acme", &7]));
        let arguments = Scope::arguments().with(b"acme").with(b"7");
        let header = Scope::header("x-tenant").with(b"acme");
        let of = |declared| Policy::DEFAULT.scope(declared);
        for (without, with, value, wanted, binds_caller) in [
            (of(DeclaredScope::Caller), of(DeclaredScope::Path), None, Scope::GLOBAL, true),
            (of(DeclaredScope::Global), of(DeclaredScope::GlobalAndPath), None, Scope::GLOBAL, false),
            (of(DeclaredScope::Header("X-Tenant")), of(DeclaredScope::HeaderAndPath("X-Tenant")), None, header, false),
            (
                Policy::DEFAULT.scope_of_arguments(),
                Policy::DEFAULT.scope_of_arguments_and_path(),
                Some(value),
                arguments,
                false,
            ),
        ] {
            let (scope, caller) = owner(&without).scope(value.and_then(|value| value()));
            assert_eq!((scope, caller.is_some()), (wanted.clone(), binds_caller), "{without:?}");
            let (scope, caller) = owner(&with).scope(value.and_then(|value| value()));
            let wanted = wanted.with_path("PUT", "/orders/%37");
            assert_eq!((scope, caller.is_some()), (wanted, binds_caller), "{with:?}");
        }
    }

    #[test]
    fn a_scope_of_arguments_without_a_value_is_the_caller() {
        let (scope, caller) = owner(&Policy::DEFAULT.scope_of_arguments()).scope(None);
        assert!(scope == Scope::GLOBAL && matches!(caller, Some(Caller::Authorization(values)) if values.len() == 1));
    }
}
