//! What a generated function calls, from the arrival of a request to its response.
//!
//! A call goes through three states, each a type: [`Call`] has the request, [`OpenCall`] knows its key, and [`ReadyCall`] has
//! all arguments and runs the handler. Nothing after [`ReadyCall::run`] is generic over the handler.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use http::request::Parts;
use http_body::Body as _;
use idem_runtime::transaction::TransactionSlot;
use idem_runtime::{Attempt, Key, Lease, RefusalReason, Replay, RequestSpan, RunResult, StoreError};
use tokio::time::timeout;

use crate::context::{LayerConfig, ParsedKey, RequestContext};
use crate::execution::{self, Execution};
use crate::key::IdempotencyKey;
use crate::policy::{Policy, Refusal};
use crate::request::body::{self, BodyState, UnreadableBody};
use crate::request::{self, Caller, FingerprintInput, KeyOwner, RequestInfo, ScopeValue, UnreadBody};
use crate::response::{self, RecordedRequest};
use crate::warnings::Warning;
use crate::{shadow, telemetry};

/// A request to a generated function. It is an axum extractor, and the only argument of that function.
pub struct Call<S>(Kind<S>);

#[allow(clippy::large_enum_variant, reason = "a box would cost every request an allocation, and probes are few")]
enum Kind<S> {
    Request(Request, S),
    /// No request: only the policy is asked for.
    Probe,
}

impl<S> fmt::Debug for Call<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Call(..)")
    }
}

impl<S> FromRequest<S> for Call<S>
where
    S: Clone + Send + Sync,
{
    type Rejection = Infallible;

    async fn from_request(request: Request, state: &S) -> Result<Self, Infallible> {
        Ok(Self(Kind::Request(request, state.clone())))
    }
}

/// The policy of an endpoint, as an extension of the response to a probe.
#[derive(Clone, Copy)]
struct Declared(&'static Policy);

impl<S> Call<S> {
    /// A call without a request. A generated function returns its policy, and goes no further.
    pub(crate) fn probe() -> Self {
        Self(Kind::Probe)
    }

    /// Returns the policy in the response to a [`probe`](Self::probe).
    pub(crate) fn declared(response: &Response) -> Option<&'static Policy> {
        response.extensions().get().map(|&Declared(policy)| policy)
    }

    /// Reads the key by the policy, unless the arguments say it.
    ///
    /// A refusal (layer missing, key missing, key malformed) is returned by the next step, which can wait for the rest of the
    /// request body.
    ///
    /// # Errors
    /// The response to a [probe](Self::probe).
    #[allow(clippy::result_large_err, reason = "the generated function returns a response")]
    pub fn open(self, policy: &'static Policy) -> Result<OpenCall<S>, Response> {
        match self.0 {
            Kind::Request(request, state) => {
                Ok(OpenCall { request: OpenRequest::new(request, policy).map(Box::new), state })
            }
            Kind::Probe => Err(Extension(Declared(policy)).into_response()),
        }
    }
}

/// A call whose key is known. It is asked for each argument in order.
pub struct OpenCall<S> {
    /// Boxed, since the futures of the extractors hold it.
    request: Result<Box<OpenRequest>, Box<Refused>>,
    state: S,
}

impl<S> fmt::Debug for OpenCall<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenCall(..)")
    }
}

impl<S> OpenCall<S>
where
    S: Send + Sync + 'static,
{
    /// Extracts an argument that is not the last.
    ///
    /// The future is boxed: within an async function the compiler forgets lifetimes, and then does not find `FromRequestParts` for
    /// `State<&'static App>`.
    ///
    /// # Errors
    /// The extractor's rejection, or a refusal of the request.
    pub fn part<'a, T: FromRequestParts<S> + 'a>(&'a mut self) -> BoxFuture<'a, Result<T, Response>> {
        let Self { request, state } = self;
        Box::pin(async move {
            let request = match request {
                Ok(request) => request,
                Err(refused) => return Err(refused.send().await),
            };
            let mut rejected = match T::from_request_parts(&mut request.parts, state).await {
                Ok(value) => return Ok(value),
                Err(rejection) => request.rejected(rejection.into_response()),
            };
            Err(rejected.send().await)
        })
    }

    /// Extracts the last argument, which may consume the body.
    ///
    /// # Errors
    /// The extractor's rejection, that of a body which is too large or breaks off, or a refusal of the request.
    pub fn last<'a, T: FromRequest<S, M> + 'a, M: 'a>(self) -> BoxFuture<'a, Result<(T, ReadyCall), Response>> {
        Box::pin(async move {
            let Self { request, state } = self;
            let mut request = match request {
                Ok(request) => request,
                Err(mut refused) => return Err(refused.send().await),
            };
            let unreadable = request.read_body().await;
            let (request, call) = request.split(unreadable.is_some());
            let mut rejected = match T::from_request(request, &state).await {
                Ok(value) => match call.checked(unreadable) {
                    Ok(call) => return Ok((value, call)),
                    Err(refused) => refused,
                },
                Err(rejection) => call.rejected(rejection.into_response()),
            };
            Err(rejected.send().await)
        })
    }

    /// Goes on with a handler without arguments.
    ///
    /// # Errors
    /// The rejection of a body which is too large or breaks off, or a refusal of the request.
    pub fn ready(self) -> BoxFuture<'static, Result<ReadyCall, Response>> {
        let request = self.request;
        Box::pin(async move {
            let mut request = match request {
                Ok(request) => request,
                Err(mut refused) => return Err(refused.send().await),
            };
            let unreadable = request.read_body().await;
            let (request, call) = request.split(unreadable.is_some());
            drop(request);
            match call.checked(unreadable) {
                Ok(call) => Ok(call),
                Err(mut refused) => Err(refused.send().await),
            }
        })
    }
}

/// A response to a request whose handler does not run, and the body that is discarded first.
struct Refused {
    response: Response,
    unread: UnreadBody,
}

impl Refused {
    /// Returns the response when the body has been discarded.
    fn send(&mut self) -> BoxFuture<'static, Response> {
        std::mem::replace(&mut self.unread, UnreadBody::nothing()).discard(std::mem::take(&mut self.response))
    }
}

/// A request whose key is known, unless its arguments say the key.
struct OpenRequest {
    parts: Parts,
    body: Body,
    policy: &'static Policy,
    config: Arc<LayerConfig>,
    key: RequestKey,
    /// Where an argument that is a transaction asks for it.
    slot: TransactionSlot,
}

/// The key of a request, as far as it is known.
enum RequestKey {
    /// There is none, and the request runs unprotected.
    None,
    /// The arguments say it, and have not yet.
    OfArguments(Box<KeyedRequest>),
    /// The same value as the handler's argument, which learns at the end what request it belongs to.
    Known(Box<KeyedRequest>, IdempotencyKey),
}

/// What was read of a request with a key before the first extractor ran: an extractor may change the parts.
struct KeyedRequest {
    owner: KeyOwner,
    fingerprint: FingerprintInput,
    info: RequestInfo,
    span: RequestSpan,
}

impl RequestKey {
    fn request(&mut self) -> Option<&mut KeyedRequest> {
        match self {
            Self::None => None,
            Self::OfArguments(request) | Self::Known(request, _) => Some(request),
        }
    }
}

/// A body as small as this arrives with its request: nothing is to be discarded after it.
const SMALL_BODY: u64 = 8 * 1024;

impl OpenRequest {
    fn new(request: Request, policy: &'static Policy) -> Result<Self, Box<Refused>> {
        let (mut parts, mut body) = request.into_parts();
        let mut refused = |parts: &Parts, response| {
            let unread = UnreadBody::share(parts, &mut body, false);
            Err(Box::new(Refused { response, unread }))
        };
        let Some(context) = parts.extensions.get_mut::<RequestContext>() else {
            let response = telemetry::refuse(&telemetry::span(&parts), Refusal::LayerMissing { policy });
            return refused(&parts, response);
        };
        let config = Arc::clone(&context.config);
        let key = if policy.key_from_arguments { Ok(None) } else { request::key(&parts.headers, policy) };
        let key = key.map(|key| key.map(IdempotencyKey::new));
        context.parsed = Some(ParsedKey { policy, key: key.clone() });
        if let Some(check) = &config.check {
            check(&parts, policy);
        }
        let refusal = match &key {
            Ok(Some(_)) => None,
            Ok(None) if policy.key_from_arguments => None,
            Ok(None) => policy.required.then_some(Refusal::KeyMissing { policy }),
            Err(reason) => Some(Refusal::KeyInvalid { policy, reason: *reason }),
        };
        let key = key.ok().flatten();
        match refusal {
            Some(refusal) if policy.shadow => shadow::unprotected(&parts, &refusal),
            Some(refusal) => return refused(&parts, config.refuse(&telemetry::span(&parts), refusal)),
            None if key.is_none() && !policy.key_from_arguments => telemetry::count_unprotected(&parts),
            None => {}
        }
        let key = match key {
            Some(key) => RequestKey::Known(Box::new(KeyedRequest::new(&parts, policy)), key),
            None if policy.key_from_arguments => RequestKey::OfArguments(Box::new(KeyedRequest::new(&parts, policy))),
            None => RequestKey::None,
        };
        let slot = TransactionSlot::default();
        parts.extensions.insert(slot.clone());
        Ok(Self { parts, body, policy, config, key, slot })
    }

    /// Reads the body if the fingerprint needs it, and puts it back for the extractor. Returns a body that cannot be read: then
    /// the extractor decides, if it reads the body.
    async fn read_body(&mut self) -> Option<UnreadableBody> {
        let policy = self.policy;
        let keyed = self.key.request().filter(|_| policy.reads_body())?;
        let body = std::mem::take(&mut self.body);
        let read = if policy.shadow {
            body::read_in_shadow(&mut self.parts, body, policy).await
        } else {
            body::read(&mut self.parts, body, policy).await
        };
        keyed.fingerprint.body(&read, policy);
        let (body, state) = read.into_body();
        self.body = body;
        match state {
            BodyState::Whole => None,
            BodyState::Unreadable(unreadable) => Some(unreadable),
            BodyState::Skipped => {
                shadow::report(&keyed.span, "unread");
                self.key = RequestKey::None;
                None
            }
        }
    }

    /// Returns the request for the last extractor, and what goes on with the call. `unreadable` says whether the body was read
    /// for the fingerprint, but not to its end.
    fn split(self, unreadable: bool) -> (Request, ReadyCall) {
        let Self { parts, mut body, policy, config, mut key, slot } = self;
        let unread = match key.request() {
            Some(_) if policy.reads_body() && !unreadable => UnreadBody::nothing(),
            Some(_) => UnreadBody::share(&parts, &mut body, unreadable),
            // Only the extractor of the key refuses such a request.
            None if body.size_hint().upper().is_some_and(|length| length <= SMALL_BODY) => UnreadBody::nothing(),
            None => UnreadBody::share(&parts, &mut body, false),
        };
        (Request::from_parts(parts, body), ReadyCall { policy, config, key, unread, slot })
    }

    fn rejected(&mut self, response: Response) -> Box<Refused> {
        let unread = UnreadBody::share(&self.parts, &mut self.body, false);
        rejected(&self.config, &mut self.key, unread, response)
    }
}

/// A call with all arguments.
pub struct ReadyCall {
    policy: &'static Policy,
    config: Arc<LayerConfig>,
    key: RequestKey,
    unread: UnreadBody,
    slot: TransactionSlot,
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
        let Self { policy, config, key, unread, slot } = self;
        let slot = slot.is_wanted().then_some(slot);
        match key {
            RequestKey::None => {}
            RequestKey::OfArguments(keyed) => {
                let missing = Refusal::KeyMissing { policy };
                match (policy.required, policy.shadow) {
                    (true, false) => return unread.discard(config.refuse(&keyed.span, missing)),
                    (true, true) => shadow::report(&keyed.span, missing.code()),
                    (false, _) => keyed.span.without_key(|| keyed.info.endpoint()),
                }
            }
            RequestKey::Known(keyed, key) => {
                let span = keyed.span.clone();
                let response = keyed.run(policy, key, config, scope, unread, (handler, slot));
                return if span.is_on() { Box::pin(async move { span.instrument(response).await }) } else { response };
            }
        }
        unread.release();
        unprotected(policy, config, handler, slot)
    }

    /// Refuses a body that is too large or broke off, if the extractor has not read it and so does not know.
    fn checked(mut self, unreadable: Option<UnreadableBody>) -> Result<Self, Box<Refused>> {
        let Some(unreadable) = unreadable.filter(|unreadable| !unreadable.is_noticed()) else { return Ok(self) };
        let span = self.key.request().map(|keyed| &keyed.span);
        if self.policy.shadow {
            span.iter().for_each(|span| shadow::report(span, "reject"));
            return Ok(Self { key: RequestKey::None, ..self });
        }
        span.iter().for_each(|span| span.rejected());
        Err(Box::new(Refused { response: self.config.describe(unreadable.rejection()), unread: self.unread }))
    }

    fn rejected(mut self, response: Response) -> Box<Refused> {
        rejected(&self.config, &mut self.key, self.unread, response)
    }
}

/// Runs the handler without a key.
fn unprotected(
    policy: &'static Policy,
    config: Arc<LayerConfig>,
    handler: BoxFuture<'static, Response>,
    slot: Option<TransactionSlot>,
) -> BoxFuture<'static, Response> {
    if let Some(slot) = slot {
        return execution::run_without_key(policy, config, slot, handler);
    }
    match policy.timeout.filter(|_| !policy.shadow) {
        None => handler,
        Some(longest) => Box::pin(async move {
            let span = RequestSpan::default();
            let refusal = Refusal::HandlerTimedOut { policy };
            timeout(longest, handler).await.unwrap_or_else(|_| config.refuse(&span, refusal))
        }),
    }
}

/// Returns a rejection. If the extractor is that of the key, it is a refusal, and the body is discarded first. Any other is sent
/// as without the attribute.
fn rejected(config: &LayerConfig, key: &mut RequestKey, unread: UnreadBody, response: Response) -> Box<Refused> {
    if let Some(keyed) = key.request() {
        keyed.span.rejected();
    }
    let response = config.describe(response);
    let refused = response.extensions().get::<Refusal>().is_some();
    Box::new(Refused { response, unread: if refused { unread } else { UnreadBody::nothing() } })
}

impl KeyedRequest {
    fn new(parts: &Parts, policy: &Policy) -> Self {
        Self {
            owner: KeyOwner::new(parts, policy),
            fingerprint: FingerprintInput::new(parts, policy),
            info: RequestInfo::of(parts),
            span: telemetry::span(parts),
        }
    }

    /// Returns a small future, since this itself is none: it holds only what is left to do.
    fn run(
        self: Box<Self>,
        policy: &'static Policy,
        key: IdempotencyKey,
        config: Arc<LayerConfig>,
        scope: Option<ScopeValue>,
        unread: UnreadBody,
        (handler, slot): (BoxFuture<'static, Response>, Option<TransactionSlot>),
    ) -> BoxFuture<'static, Response> {
        let Self { owner, mut fingerprint, info, span } = *self;
        let request = RecordedRequest {
            policy,
            is_head: info.is_head(),
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
            unread.release();
            let handler = match slot {
                None => handler,
                Some(slot) => execution::run_without_key(policy, Arc::clone(&config), slot, handler),
            };
            return Box::pin(shadow::run(config.idempotency.clone(), request, attempt, span, handler));
        }
        let is_head = request.is_head;
        let execution = Execution::new(request, &config, &span, slot.clone());
        let body = unread.clone();
        let execute = move |lease: Lease| {
            key.set_lease(lease);
            body.release();
            execution.run(handler)
        };
        let idempotency = config.idempotency.clone();
        let after = AfterRun { policy, is_head, config, span, unread, slot: slot.clone() };
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
                Ok(RunResult::Executed(response)) => return response,
                Ok(RunResult::Replayed(replay)) => self.replay(&replay),
                Err(reason) => execution::refused(self.policy, &self.config, &self.span, self.slot.as_ref(), reason),
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
