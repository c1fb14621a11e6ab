//! A request with all arguments: its handler runs now, unless it ran before.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use idem_runtime::transaction::TransactionSlot;
use idem_runtime::{Key, panics};
use tokio::time::timeout;

use super::keyed::{KeyedRequest, RequestKey};
use super::refused::{Refused, rejected};
use crate::context::LayerConfig;
use crate::key::IdempotencyKey;
use crate::policy::{Policy, Refusal};
use crate::request::body::PartialBody;
use crate::request::{ScopeValue, UnreadBody};
use crate::response::Framing;
use crate::telemetry::Keyless;
use crate::{execution, shadow};

/// A call with all arguments.
pub struct ReadyCall {
    pub(super) policy: &'static Policy,
    pub(super) config: Arc<LayerConfig>,
    pub(super) key: RequestKey,
    /// A body that the fingerprint does not cover, until it is known whether the arguments say a key.
    pub(super) uncovered: Option<Box<PartialBody>>,
    pub(super) unread: UnreadBody,
    pub(super) slot: TransactionSlot,
    pub(super) framing: Framing,
}

impl fmt::Debug for ReadyCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadyCall(..)")
    }
}

impl ReadyCall {
    /// Sets the key that the arguments say, for a policy with `key_from_arguments`. Without one the request runs unprotected, or is
    /// refused if the policy requires a key.
    #[must_use]
    pub fn with_key(mut self, key: Option<Key>) -> Self {
        self.key = match (self.key, key) {
            (RequestKey::OfArguments(request), Some(key)) => RequestKey::Known(request, IdempotencyKey::new(key)),
            (unchanged, _) => unchanged,
        };
        self
    }

    /// Runs the handler unless it ran before. The response is the handler's, a replay, or a refusal.
    ///
    /// `handler` makes the future of the user's function, which is boxed once, here.
    pub fn run<H, F>(self, scope: Option<ScopeValue>, handler: H) -> BoxFuture<'static, Response>
    where
        H: FnOnce() -> F + Send + 'static,
        F: Future<Output: IntoResponse> + Send + 'static,
    {
        self.run_boxed(scope, Box::pin(async move { handler().await.into_response() }))
    }

    fn run_boxed(
        self,
        scope: Option<ScopeValue>,
        handler: BoxFuture<'static, Response>,
    ) -> BoxFuture<'static, Response> {
        let call = match self.covered() {
            Ok(call) => call,
            Err(mut refused) => return refused.send(),
        };
        let Self { policy, config, key, uncovered: _, unread, slot, framing } = call;
        let slot = slot.is_wanted().then_some(slot);
        let keyless = match key {
            RequestKey::None(keyless) => keyless,
            RequestKey::OfArguments(keyed) => {
                let KeyedRequest { info, span, .. } = *keyed;
                let missing = Refusal::KeyMissing { policy };
                match (policy.required, policy.shadow) {
                    (true, false) => return unread.discard(config.refuse(&span, missing)),
                    (true, true) => {
                        shadow::report(&span, missing.code());
                        None
                    }
                    (false, _) => Some(Keyless::within(info, span)),
                }
            }
            RequestKey::Known(keyed, key) => {
                let span = keyed.span.clone();
                let response = keyed.run(policy, key, config, scope, unread, (handler, slot));
                return if span.is_on() { Box::pin(async move { span.instrument(response).await }) } else { response };
            }
        };
        match slot {
            None => {
                unread.release();
                unprotected(policy, config, keyless, handler, unread)
            }
            Some(slot) => {
                execution::run_without_key(policy, config, slot, framing, keyless.map(Arc::new), (handler, unread))
            }
        }
    }

    /// Refuses a body that the fingerprint does not cover, unless its extractor has read so far that it knows, and the handler will
    /// read no more of it.
    pub(super) fn checked(mut self, body: Option<PartialBody>) -> Result<Self, Box<Refused>> {
        if let Some(PartialBody::Unreadable(unreadable)) = &body
            && unreadable.is_noticed()
            && !(unreadable.goes_on() && self.unread.is_handed())
        {
            if let Some(keyed) = self.key.request() {
                keyed.fingerprint.beyond_limit(unreadable);
            }
            return Ok(self);
        }
        self.uncovered = body.map(Box::new);
        self.covered()
    }

    /// Refuses a body that the fingerprint does not cover, or in shadow mode reports it, if the request has a key. Without one the
    /// handler gets it as it is.
    fn covered(mut self) -> Result<Self, Box<Refused>> {
        let RequestKey::Known(keyed, _) = &self.key else { return Ok(self) };
        let Some(body) = self.uncovered.take() else { return Ok(self) };
        let would = match *body {
            PartialBody::Skipped => "unread",
            PartialBody::Unreadable(_) if self.policy.shadow => "reject",
            PartialBody::Unreadable(unreadable) => {
                keyed.span.rejected();
                return Err(Box::new(Refused { response: unreadable.rejection(), unread: self.unread }));
            }
        };
        shadow::report(&keyed.span, would);
        Ok(Self { key: RequestKey::None(None), ..self })
    }

    pub(super) fn rejected(self, response: Response) -> Box<Refused> {
        rejected(&self.config, &self.key, self.unread, response)
    }
}

/// Runs the handler without a key and without a transaction.
fn unprotected(
    policy: &'static Policy,
    config: Arc<LayerConfig>,
    keyless: Option<Keyless>,
    handler: BoxFuture<'static, Response>,
    unread: UnreadBody,
) -> BoxFuture<'static, Response> {
    if let Some(keyless) = &keyless {
        keyless.starts();
    }
    match execution::timeout_of(policy) {
        None => handler,
        Some(longest) => Box::pin(async move {
            let mut handler = handler;
            if let Ok(response) = timeout(longest, &mut handler).await {
                return response;
            }
            unread.keep();
            panics::drop_quietly(handler);
            let span = keyless.as_ref().map(Keyless::span).unwrap_or_default();
            unread.discard_if_refused(config.refuse(&span, Refusal::HandlerTimedOut { policy, undone: false })).await
        }),
    }
}
