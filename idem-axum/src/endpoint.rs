//! What a generated function calls, from the request's arrival to its answer.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::StatusCode;
use http::request::Parts;
use idem_runtime::{Answer, Attempt, Ended, Observation, Scope, StorageKey, StoreError};

use crate::extract::{IdempotencyKey, Presented};
use crate::layer::{Mounted, Settings};
use crate::observing::{self, observe, refuse};
use crate::policy::Policy;
use crate::refusal::Refusal;
use crate::request::{self, Owner, ScopeValue, Source, Unfinished};
use crate::response;
use crate::shadow;

/// A request on its way through a generated function: opened with the policy, asked for each argument in order, and run.
///
/// It is an axum extractor itself, the only argument of the generated function.
pub struct Call<S> {
    parts: Parts,
    body: Body,
    /// `None` where nobody sent a request, and only the policy is asked for.
    state: Option<S>,
    /// Those of the layer, once the call is open.
    settings: Option<Arc<Settings>>,
    /// `None` where the request has no key and runs unprotected.
    protected: Option<Protected>,
}

/// What was read of a request with a key before the first extractor ran: an extractor may change the parts.
struct Protected {
    policy: &'static Policy,
    /// The handler's own, which learns at the end what request it belongs to.
    key: IdempotencyKey,
    owner: Owner,
    fingerprint: Unfinished,
    source: Source,
    body_read: bool,
    observation: Observation,
}

impl<S> fmt::Debug for Call<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("method", &self.parts.method).finish_non_exhaustive()
    }
}

impl<S> FromRequest<S> for Call<S>
where
    S: Clone + Send + Sync,
{
    type Rejection = Infallible;

    async fn from_request(request: Request, state: &S) -> Result<Self, Infallible> {
        let (parts, body) = request.into_parts();
        Ok(Self { parts, body, state: Some(state.clone()), settings: None, protected: None })
    }
}

/// What a call without a request is answered with, as an extension of the response.
#[derive(Clone, Copy)]
struct Declared(&'static Policy);

impl<S> Call<S> {
    /// A call without a request: a generated function answers it with its policy, and goes no further.
    pub(crate) fn probe() -> Self {
        let (parts, ()) = http::Request::new(()).into_parts();
        Self { parts, body: Body::empty(), state: None, settings: None, protected: None }
    }

    /// The policy in the answer to a [`probe`](Self::probe).
    pub(crate) fn declared(answer: &Response) -> Option<&'static Policy> {
        answer.extensions().get().map(|&Declared(policy)| policy)
    }
}

impl<S> Call<S>
where
    S: Send + Sync,
{
    /// Reads the key by the policy.
    ///
    /// # Errors
    /// The response of a refusal: layer missing, key missing, key malformed.
    #[allow(clippy::result_large_err, reason = "a response is what the generated function returns")]
    pub fn open(&mut self, policy: &'static Policy) -> Result<(), Response> {
        let Parts { headers, extensions, .. } = &mut self.parts;
        let Some(mounted) = extensions.get_mut::<Mounted>() else {
            return Err(match self.state {
                Some(_) => refuse(&observe(&self.parts), Refusal::LayerMissing { policy }),
                None => Extension(Declared(policy)).into_response(),
            });
        };
        let settings = self.settings.insert(Arc::clone(&mounted.settings));
        let key = match request::key(headers, policy) {
            Ok(key) => key.map(IdempotencyKey::new),
            Err(reason) => {
                let refusal = Refusal::KeyInvalid { policy, reason };
                if policy.shadow {
                    mounted.presented = Some(Presented { policy, key: None });
                    shadow::unprotected(&self.parts, &refusal);
                    return Ok(());
                }
                return Err(settings.refuse(&observe(&self.parts), refusal));
            }
        };
        mounted.presented = Some(Presented { policy, key: key.clone() });
        if let Some(documented) = &settings.documented {
            documented.compare(&self.parts, policy);
        }
        let Some(key) = key else {
            if policy.required && policy.shadow {
                shadow::unprotected(&self.parts, &Refusal::KeyMissing { policy });
                return Ok(());
            }
            if policy.required {
                return Err(settings.refuse(&observe(&self.parts), Refusal::KeyMissing { policy }));
            }
            observing::unprotected(&self.parts);
            return Ok(());
        };
        self.protected = Some(Protected {
            policy,
            key,
            owner: request::owner(&self.parts.headers, policy),
            fingerprint: Unfinished::new(&self.parts, policy),
            source: Source::of(&self.parts),
            body_read: !policy.reads_body(),
            observation: observe(&self.parts),
        });
        Ok(())
    }

    /// An argument that is not the last.
    ///
    /// # Errors
    /// The extractor's rejection.
    pub async fn part<T: FromRequestParts<S>>(&mut self) -> Result<T, Response> {
        let Some(state) = &self.state else { return Err(not_opened()) };
        match T::from_request_parts(&mut self.parts, state).await {
            Ok(value) => Ok(value),
            Err(rejection) => Err(self.rejected(rejection)),
        }
    }

    /// The last argument, which may consume the body.
    ///
    /// # Errors
    /// The extractor's rejection, or that of a body which is too large or breaks off.
    pub async fn last<T: FromRequest<S, M>, M>(&mut self) -> Result<T, Response> {
        self.read_body().await?;
        let (parts, body) = self.take();
        let Some(state) = &self.state else { return Err(not_opened()) };
        match T::from_request(Request::from_parts(parts, body), state).await {
            Ok(value) => Ok(value),
            Err(rejection) => Err(self.rejected(rejection)),
        }
    }

    /// As [`part`](Self::part), for a type with a lifetime: the compiler forgets lifetimes within an async function, and then
    /// does not find `FromRequestParts` for `State<&'static App>`. A box hides the type from it.
    ///
    /// # Errors
    /// As for [`part`](Self::part).
    pub fn part_in_a_box<'a, T: FromRequestParts<S> + 'a>(&'a mut self) -> BoxFuture<'a, Result<T, Response>> {
        Box::pin(self.part())
    }

    /// As [`last`](Self::last), for a type with a lifetime.
    ///
    /// # Errors
    /// As for [`last`](Self::last).
    pub fn last_in_a_box<'a, T: FromRequest<S, M> + 'a, M: 'a>(&'a mut self) -> BoxFuture<'a, Result<T, Response>> {
        Box::pin(self.last::<T, M>())
    }

    /// Runs the body unless it ran before: the answer of either, or a refusal.
    pub async fn run<F>(&mut self, policy: &'static Policy, scope: Option<ScopeValue>, body: F) -> Response
    where
        F: Future<Output: IntoResponse> + Send + 'static,
    {
        // For a handler without arguments; after that nothing of the request is needed any more.
        if let Err(rejection) = self.read_body().await {
            return rejection;
        }
        match (self.protected.take(), self.settings.take()) {
            (Some(protected), Some(settings)) if protected.observation.is_on() => {
                let observation = protected.observation.clone();
                observation.over(Box::pin(protected.run(settings, policy, scope, body))).await
            }
            (Some(protected), Some(settings)) => protected.run(settings, policy, scope, body).await,
            (Some(_), None) => not_opened(),
            (None, _) => body.await.into_response(),
        }
    }

    /// A rejection, which is a refusal where the extractor is that of the key.
    fn rejected(&self, rejection: impl IntoResponse) -> Response {
        if let Some(protected) = &self.protected {
            protected.observation.rejected();
        }
        let response = rejection.into_response();
        match &self.settings {
            Some(settings) => settings.describe(response),
            None => response,
        }
    }

    /// Reads the body where the fingerprint needs it, and puts it back for the extractor.
    async fn read_body(&mut self) -> Result<(), Response> {
        if self.protected.as_ref().is_none_or(|protected| protected.body_read) {
            return Ok(());
        }
        if self.protected.as_ref().is_some_and(|protected| protected.policy.shadow) {
            self.read_body_in_shadow().await;
            return Ok(());
        }
        let buffered = request::buffer(&mut self.parts, mem::take(&mut self.body)).await;
        let bytes = buffered.map_err(|rejection| self.rejected(rejection))?;
        if let Some(protected) = &mut self.protected {
            protected.fingerprint.body(&bytes, protected.policy);
            protected.body_read = true;
        }
        self.body = Body::from(bytes);
        Ok(())
    }

    /// The same, but a body that cannot be read stays what it is, and the request runs without its shadow.
    async fn read_body_in_shadow(&mut self) {
        let (body, read) = shadow::buffer(&self.parts, mem::take(&mut self.body)).await;
        self.body = body;
        match (&mut self.protected, read) {
            (Some(protected), Ok(bytes)) => {
                protected.fingerprint.body(&bytes, protected.policy);
                protected.body_read = true;
            }
            (Some(protected), Err(reason)) => {
                shadow::unfinished(&protected.observation, reason);
                self.protected = None;
            }
            (None, _) => {}
        }
    }

    fn take(&mut self) -> (Parts, Body) {
        let (nothing, ()) = http::Request::new(()).into_parts();
        (mem::replace(&mut self.parts, nothing), mem::take(&mut self.body))
    }
}

impl Protected {
    async fn run<F>(
        self,
        settings: Arc<Settings>,
        policy: &'static Policy,
        evaluated: Option<ScopeValue>,
        body: F,
    ) -> Response
    where
        F: Future<Output: IntoResponse> + Send + 'static,
    {
        let Self { key, owner, mut fingerprint, source, observation, .. } = self;
        let scope = match (evaluated, owner) {
            (Some(ScopeValue(scope)), _) | (None, Owner::Scope(scope)) => scope,
            (None, Owner::Caller(authorization)) => {
                fingerprint.bind_caller(&authorization);
                Scope::GLOBAL
            }
        };
        let storage_key = StorageKey::new(&scope, key.key());
        let attempt = source.describe(Attempt::new(storage_key, fingerprint.finish(), policy.rules()));
        key.belongs_to(attempt.key, attempt.fingerprint);
        observation.belongs_to(&attempt.key);
        if policy.shadow {
            let idempotency = &settings.idempotency;
            return Box::pin(shadow::run(idempotency, policy, attempt, observation, body)).await;
        }
        let run = move |lease| {
            key.runs_under(lease);
            ended(policy, body)
        };
        let answered = if policy.without_store {
            settings.idempotency.dangerously_run_without_store(attempt, run).await
        } else {
            settings.idempotency.run_leased(attempt, run).await
        };
        match answered {
            Ok(Answer::Ran(response)) => response,
            Ok(Answer::Recorded(recorded)) => match response::replay(policy, recorded.answer()) {
                Ok(replay) => {
                    tracing::debug!("a replay is sent");
                    observation.replayed(&recorded);
                    replay
                }
                Err(undecodable) => {
                    let source = StoreError::unreadable(undecodable);
                    settings.refuse(&observation, Refusal::StoreUnavailable { policy, source })
                }
            },
            Err(refused) => settings.refuse(&observation, Refusal::of(refused, policy)),
        }
    }
}

/// For generated code that went on although the call was not opened, which it never does.
fn not_opened() -> Response {
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

/// Runs the body. A panic, also one while the response is made, becomes a 500 that is recorded under the same rules as any
/// response, since the body may have had effects.
async fn ended<F: Future<Output: IntoResponse>>(policy: &'static Policy, body: F) -> Ended<Response> {
    tracing::debug!("an execution begins");
    let ended = AssertUnwindSafe(async { response::capture(policy, body.await.into_response()).await });
    match ended.catch_unwind().await {
        Ok(ended) => ended,
        Err(panic) => {
            response::discard(panic);
            // What it said went to the panic hook; it may hold anything, so it is not repeated.
            tracing::error!("the body of an `#[idempotent]` handler panicked; it is answered with 500");
            response::capture(policy, StatusCode::INTERNAL_SERVER_ERROR.into_response()).await
        }
    }
}
