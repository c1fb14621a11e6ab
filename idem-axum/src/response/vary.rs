//! A warning about responses that depend on a header which the key is not bound to.

use http::HeaderMap;
use http::header::VARY;

use super::headers::list;
use crate::policy::{Part, Policy};
use crate::warnings::{Warning, Warnings};

/// Warns, once per endpoint, if the recorded response has a `Vary` with a header that is in neither the fingerprint nor the
/// scope: a retry with another value of that header gets the recorded variant.
pub(super) fn check(policy: &Policy, headers: &HeaderMap, warnings: &Warnings) {
    let Some(name) = unbound(policy, headers) else { return };
    if warnings.is_first(Warning::Vary, policy) {
        tracing::warn!(
            header = %String::from_utf8_lossy(name),
            "a recorded response varies with a header that is in neither `fingerprint` nor `scope`, so a retry with another \
             value gets the recorded variant; add `header(\"..\")` to `fingerprint`"
        );
    }
}

/// Returns the first such header.
fn unbound<'a>(policy: &Policy, headers: &'a HeaderMap) -> Option<&'a [u8]> {
    list(headers, VARY).find(|name| !name.is_empty() && !is_bound(policy, name))
}

fn is_bound(policy: &Policy, name: &[u8]) -> bool {
    let is = |bound: &str| bound.as_bytes().eq_ignore_ascii_case(name);
    let in_fingerprint = |part: &Part| matches!(part, Part::Header(bound) if is(bound));
    policy.scope.binds(name) || policy.fingerprint.iter().any(in_fingerprint)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::policy::Scope;

    #[test]
    fn a_header_in_fingerprint_or_scope_is_bound() {
        let policy = Policy::DEFAULT.fingerprint(&[Part::Header("Accept")]).scope(Scope::Header("X-Tenant"));
        let unbound = |vary: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in vary {
                headers.append(VARY, HeaderValue::from_static(line));
            }
            super::unbound(&policy, &headers).map(|name| String::from_utf8_lossy(name).into_owned())
        };
        assert_eq!(unbound(&[]), None);
        assert_eq!(unbound(&["accept, X-TENANT", ""]), None);
        assert_eq!(unbound(&["accept", "x-tenant ,Origin"]).as_deref(), Some("Origin"));
        assert_eq!(unbound(&["*"]).as_deref(), Some("*"));
        assert_eq!(unbound(&["authorization"]).as_deref(), Some("authorization"), "the scope is the tenant");
    }
}
