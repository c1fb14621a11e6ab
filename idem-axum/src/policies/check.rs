//! The endpoints that are called, compared with the list.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::MatchedPath;
use http::Method;
use http::request::Parts;

use super::document::DescribedRules;
use super::index::ListedEndpoint;
use crate::policy::Policy;
use crate::request;

/// No more are remembered, however many routes there are.
const MAX_UNDOCUMENTED: usize = 256;

/// The listed endpoints, for a layer that compares them with those that are called.
#[derive(Debug)]
pub(crate) struct ListedEndpoints {
    by_path: HashMap<String, Vec<Listed>>,
    undocumented: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Debug)]
struct Listed {
    method: Method,
    policy: &'static Policy,
    rules: DescribedRules,
    /// Whether a request has come, and the policy was compared.
    compared: AtomicBool,
}

impl ListedEndpoints {
    pub(super) fn new(endpoints: &[ListedEndpoint], undocumented: Arc<Mutex<BTreeSet<String>>>) -> Self {
        let mut by_path: HashMap<String, Vec<Listed>> = HashMap::new();
        for ListedEndpoint { method, path, policy, rules } in endpoints.iter().cloned() {
            by_path.entry(path).or_default().push(Listed { method, policy, rules, compared: AtomicBool::new(false) });
        }
        Self { by_path, undocumented }
    }

    /// Logs a warning, once, if the endpoint that is called with `policy` is not listed, or with other rules.
    pub(crate) fn compare(&self, parts: &Parts, policy: &'static Policy) {
        let path = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
        let listed = path.and_then(|path| self.by_path.get(path)).and_then(|listed| of(listed, &parts.method));
        let Some(listed) = listed else {
            return self.remember(
                &parts.method,
                path,
                "is not in the policy document: add it with `Policies::endpoint`",
            );
        };
        if listed.compared.load(Ordering::Relaxed) || listed.compared.swap(true, Ordering::Relaxed) {
            return;
        }
        // One constant may have several addresses.
        if !std::ptr::eq(listed.policy, policy) && listed.rules != DescribedRules::of(policy) {
            self.remember(
                &parts.method,
                path,
                "has another policy than the policy document says: list the handler it runs",
            );
        }
    }

    fn remember(&self, method: &Method, path: Option<&str>, problem: &str) {
        // A client can invent methods, and would use up the room for the others.
        let method = request::method(method);
        // The path of a fallback is the client's, and no template.
        let path = path.unwrap_or("(fallback)");
        let endpoint = format!("{method} {path}");
        let mut undocumented = self.undocumented.lock().unwrap_or_else(PoisonError::into_inner);
        if undocumented.len() < MAX_UNDOCUMENTED && undocumented.insert(endpoint) {
            drop(undocumented);
            tracing::warn!(method, path, "an `#[idempotent]` endpoint {problem}");
        }
    }
}

/// axum routes HEAD to the handler of GET.
fn of<'a>(listed: &'a [Listed], method: &Method) -> Option<&'a Listed> {
    let find = |method: &Method| listed.iter().find(|listed| listed.method == *method);
    find(method).or_else(|| if method == Method::HEAD { find(&Method::GET) } else { None })
}
