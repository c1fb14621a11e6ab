//! A request before its handler: the key, and one argument after the other.

use std::fmt;
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use http::request::Parts;
use http_body::Body as _;
use idem_runtime::transaction::TransactionSlot;

use super::keyed::{KeyedRequest, RequestKey};
use super::refused::{Refused, rejected};
use super::{ReadyCall, SplitRequest};
use crate::context::{LayerConfig, ParsedKey, RequestContext};
use crate::key::IdempotencyKey;
use crate::policy::{Policy, Refusal};
use crate::request::body::{self, PartialBody};
use crate::request::{self, UnreadBody};
use crate::response::Framing;
use crate::shadow;
use crate::telemetry::{self, Keyless};

/// A call whose key is known. It is asked for each argument in order.
pub struct OpenCall<S> {
    request: Result<OpenRequest, Box<Refused>>,
    state: S,
}

impl<S> fmt::Debug for OpenCall<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenCall(..)")
    }
}

impl<S> OpenCall<S> {
    pub(super) fn new(request: Box<SplitRequest>, state: S, policy: &'static Policy) -> Self {
        Self { request: OpenRequest::new(request, policy), state }
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
            let open = match request {
                Ok(open) => open,
                Err(refused) => return Err(refused.send().await),
            };
            let mut rejected = match T::from_request_parts(&mut open.request.parts, state).await {
                Ok(value) => return Ok(value),
                Err(rejection) => open.rejected(rejection.into_response()),
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
            let mut open = match request {
                Ok(open) => open,
                Err(mut refused) => return Err(refused.send().await),
            };
            let body = open.read_body().await;
            let (request, call) = open.into_ready(body.is_some());
            // Boxed by itself: two boxes of less than a kilobyte take less time to allocate than one of more.
            let mut rejected = match Box::pin(T::from_request(request.join(), &state)).await {
                Ok(value) => match call.checked(body) {
                    Ok(call) => return Ok((value, call)),
                    Err(refused) => refused,
                },
                Err(rejection) => call.rejected(rejection.into_response()),
            };
            Err(rejected.send().await)
        })
    }
}

/// A request whose key is known, unless its arguments say the key.
struct OpenRequest {
    request: Box<SplitRequest>,
    policy: &'static Policy,
    config: Arc<LayerConfig>,
    key: RequestKey,
    /// Where an argument that is a transaction asks for it.
    slot: TransactionSlot,
}

/// A body as small as this arrives with its request: nothing is to be discarded after it.
const SMALL_BODY: u64 = 8 * 1024;

impl OpenRequest {
    fn new(mut request: Box<SplitRequest>, policy: &'static Policy) -> Result<Self, Box<Refused>> {
        let SplitRequest { parts, body } = &mut *request;
        let mut refused = |parts: &Parts, response| {
            let unread = UnreadBody::share(parts, body, false);
            Err(Box::new(Refused { response, unread }))
        };
        let Some(context) = parts.extensions.get_mut::<RequestContext>() else {
            let response = telemetry::refuse(&telemetry::span(parts), Refusal::LayerMissing { policy });
            return refused(parts, response);
        };
        let config = Arc::clone(&context.config);
        let key = if policy.key_from_arguments { Ok(None) } else { request::key(&parts.headers, policy) };
        let key = key.map(|key| key.map(IdempotencyKey::new));
        context.parsed = Some(ParsedKey { policy, key: key.clone() });
        if let Some(check) = &config.check {
            check(parts, policy);
        }
        let refusal = match &key {
            Ok(Some(_)) => None,
            Ok(None) if policy.key_from_arguments => None,
            Ok(None) => policy.required.then_some(Refusal::KeyMissing { policy }),
            Err(reason) => Some(Refusal::KeyInvalid { policy, reason: *reason }),
        };
        let key = key.ok().flatten();
        let is_reported = refusal.is_some();
        match refusal {
            Some(refusal) if policy.shadow => shadow::unprotected(parts, &refusal),
            Some(refusal) => return refused(parts, config.refuse(&telemetry::span(parts), refusal)),
            None => {}
        }
        let key = match key {
            Some(key) => RequestKey::Known(Box::new(KeyedRequest::new(parts, policy)), key),
            None if policy.key_from_arguments => RequestKey::OfArguments(Box::new(KeyedRequest::new(parts, policy))),
            None => RequestKey::None((!is_reported).then(|| Keyless::of(parts))),
        };
        let slot = TransactionSlot::default();
        parts.extensions.insert(slot.clone());
        Ok(Self { request, policy, config, key, slot })
    }

    /// Reads the body if the fingerprint needs it, and puts it back for the extractor. Returns a body that was not read to its end.
    async fn read_body(&mut self) -> Option<PartialBody> {
        let policy = self.policy;
        let keyed = self.key.request().filter(|_| policy.reads_body())?;
        let body = std::mem::take(&mut self.request.body);
        let read = if policy.shadow {
            body::read_in_shadow(&mut self.request.parts, body, policy).await
        } else {
            body::read(&mut self.request.parts, body, policy).await
        };
        keyed.fingerprint.body(&read, policy);
        let (body, partial) = read.into_body();
        self.request.body = body;
        partial
    }

    /// Returns the request for the last extractor, and what goes on with the call. `is_partial` says whether the body was read
    /// for the fingerprint, but not to its end.
    fn into_ready(self, is_partial: bool) -> (Box<SplitRequest>, ReadyCall) {
        let Self { mut request, policy, config, mut key, slot } = self;
        let SplitRequest { parts, body } = &mut *request;
        let unread = match key.request() {
            Some(_) if policy.reads_body() && !is_partial => UnreadBody::nothing(),
            Some(_) => UnreadBody::share(parts, body, is_partial),
            // Only the extractor of the key refuses such a request.
            None if body.size_hint().upper().is_some_and(|length| length <= SMALL_BODY) => UnreadBody::nothing(),
            None => UnreadBody::share(parts, body, false),
        };
        let framing = Framing::of(parts);
        (request, ReadyCall { policy, config, key, uncovered: None, unread, slot, framing })
    }

    fn rejected(&mut self, response: Response) -> Box<Refused> {
        let unread = UnreadBody::share(&self.request.parts, &mut self.request.body, false);
        rejected(&self.config, &self.key, unread, response)
    }
}
