//! What is known of a request with a key, and what the engine makes of it.

use std::sync::Arc;

use axum::response::Response;
use futures_util::future::BoxFuture;
use http::request::Parts;
use idem_runtime::transaction::TransactionSlot;
use idem_runtime::{Attempt, Lease, RefusalReason, Replay, RequestSpan, RunResult, StoreError};

use crate::context::LayerConfig;
use crate::execution::{self, Execution};
use crate::key::IdempotencyKey;
use crate::policy::{Policy, Refusal};
use crate::request::{Caller, FingerprintInput, KeyOwner, RequestInfo, ScopeValue, UnreadBody, rewritten_path};
use crate::response::{self, Framing, RecordedRequest};
use crate::shadow;
use crate::telemetry::{self, ExecutionSpan, Keyless};
use crate::warnings::Warning;

/// The key of a request, as far as it is known.
pub(super) enum RequestKey {
    /// There is none, and the request runs unprotected. In shadow mode it may have been reported already.
    None(Option<Keyless>),
    /// The arguments say it, and have not yet.
    OfArguments(Box<KeyedRequest>),
    /// The same value as the handler's argument, which learns at the end what request it belongs to.
    Known(Box<KeyedRequest>, IdempotencyKey),
}

/// What was read of a request with a key before the first extractor ran: an extractor may change the parts.
pub(super) struct KeyedRequest {
    owner: KeyOwner,
    pub(super) fingerprint: FingerprintInput,
    framing: Framing,
    pub(super) info: RequestInfo,
    pub(super) span: RequestSpan,
}

impl RequestKey {
    pub(super) fn request(&mut self) -> Option<&mut KeyedRequest> {
        match self {
            Self::None(_) => None,
            Self::OfArguments(request) | Self::Known(request, _) => Some(request),
        }
    }
}

impl KeyedRequest {
    pub(super) fn new(parts: &mut Parts, policy: &Policy) -> Self {
        let rewritten = rewritten_path(parts);
        Self {
            owner: KeyOwner::new(parts, policy, rewritten.as_deref()),
            fingerprint: FingerprintInput::new(parts, policy, rewritten.as_deref()),
            framing: Framing::of(parts),
            info: RequestInfo::of(parts),
            span: telemetry::span(parts),
        }
    }

    /// Returns a small future, since this itself is none: it holds only what is left to do.
    pub(super) fn run(
        self: Box<Self>,
        policy: &'static Policy,
        key: IdempotencyKey,
        config: Arc<LayerConfig>,
        scope: Option<ScopeValue>,
        unread: UnreadBody,
        (handler, slot): (BoxFuture<'static, Response>, Option<TransactionSlot>),
    ) -> BoxFuture<'static, Response> {
        let Self { owner, mut fingerprint, framing, info, span } = *self;
        let request = RecordedRequest {
            policy,
            framing,
            has_transaction: slot.is_some(),
            body_failed: unread.has_failed(),
            warnings: config.warnings.clone(),
        };
        let (scope, caller) = owner.scope(scope);
        if let Some(caller) = &caller {
            fingerprint.bind_caller(caller);
        }
        if let Some(Caller::Cookie(_)) = caller
            && config.warnings.is_first(Warning::Cookie, policy)
        {
            telemetry::warn_of_cookie(&info);
        }
        let storage_key = config.idempotency.storage_key(&scope, key.key());
        let attempt = Attempt::new(storage_key, fingerprint.finish(), policy.rules()).under(policy.tag);
        let attempt = info.describe(attempt);
        key.set_identity(attempt.key, attempt.fingerprint);
        span.set_key(&attempt.key);
        if policy.shadow {
            let handler = match slot {
                None => {
                    unread.release();
                    handler
                }
                Some(slot) => {
                    execution::run_without_key(policy, Arc::clone(&config), slot, framing, None, (handler, unread))
                }
            };
            return Box::pin(shadow::run(config.idempotency.clone(), request, attempt, span, handler));
        }
        let execution =
            Execution::new(request, &config, ExecutionSpan::Request(span.clone()), slot.clone(), unread.clone());
        let execute = move |lease: Lease| {
            key.set_lease(lease);
            execution.run(handler)
        };
        let idempotency = config.idempotency.clone();
        let after = AfterRun { policy, is_head: framing.is_head, config, span, unread, slot: slot.clone() };
        match slot {
            None => after.respond(Box::pin(idempotency.run(attempt, execute))),
            Some(slot) => {
                let execute = move || execute(Lease::default());
                after.respond(Box::pin(async move { idempotency.run_in_transaction(attempt, slot, execute).await }))
            }
        }
    }
}

/// What is needed to make the response from what the engine returned.
struct AfterRun {
    policy: &'static Policy,
    is_head: bool,
    config: Arc<LayerConfig>,
    span: RequestSpan,
    unread: UnreadBody,
    slot: Option<TransactionSlot>,
}

impl AfterRun {
    /// Returns a small future: it holds only what is left to do.
    fn respond(
        self,
        run: BoxFuture<'static, Result<RunResult<Response>, RefusalReason>>,
    ) -> BoxFuture<'static, Response> {
        Box::pin(async move {
            let response = match run.await {
                Ok(RunResult::Executed(response)) if self.unread.is_nothing() => return response,
                Ok(RunResult::Executed(response)) => return self.unread.discard_if_refused(response).await,
                Ok(RunResult::Replayed(replay)) => self.replay(&replay),
                Err(reason) => {
                    execution::refused(self.policy, &self.config, || self.span.clone(), self.slot.as_ref(), reason)
                }
            };
            if self.unread.is_nothing() { response } else { self.unread.discard(response).await }
        })
    }

    fn replay(&self, recorded: &Replay) -> Response {
        let policy = self.policy;
        match response::replay(policy, self.is_head, recorded.content()) {
            Ok(replay) => {
                tracing::debug!("a replay is sent");
                self.span.replayed(recorded);
                replay
            }
            Err(error) => {
                let source = StoreError::unreadable(error);
                self.config.refuse(&self.span, Refusal::StoreUnavailable { policy, source })
            }
        }
    }
}
