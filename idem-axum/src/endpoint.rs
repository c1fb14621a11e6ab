//! What a generated function calls, from the request's arrival to its answer.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::mem;
use std::panic::AssertUnwindSafe;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::StatusCode;
use http::request::Parts;
use idem_runtime::{Answer, Attempt, Ended, Idempotency, Scope, StorageKey, StoreError};

use crate::extract::{IdempotencyKey, Presented};
use crate::layer::Mounted;
use crate::policy::Policy;
use crate::refusal::Refusal;
use crate::request::{self, Owner, ScopeValue, Source, Unfinished};
use crate::response;

/// A request on its way through a generated function: opened with the policy, asked for each argument in order, and run.
///
/// It is an axum extractor itself, the only argument of the generated function.
pub struct Call<S> {
    parts: Parts,
    body: Body,
    state: S,
    /// `None` where the request has no key and runs unprotected.
    protected: Option<Protected>,
}

/// What was read of a request with a key before the first extractor ran: an extractor may change the parts.
struct Protected {
    policy: &'static Policy,
    idempotency: Idempotency,
    /// The handler's own, which learns at the end what request it belongs to.
    key: IdempotencyKey,
    owner: Owner,
    fingerprint: Unfinished,
    source: Source,
    body_read: bool,
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
        Ok(Self { parts, body, state: state.clone(), protected: None })
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
            return Err(Refusal::LayerMissing { policy }.into_response());
        };
        let key =
            request::key(headers, policy).map_err(|reason| Refusal::KeyInvalid { policy, reason }.into_response())?;
        let key = key.map(IdempotencyKey::new);
        mounted.presented = Some(Presented { policy, key: key.clone() });
        let Some(key) = key else {
            return if policy.required { Err(Refusal::KeyMissing { policy }.into_response()) } else { Ok(()) };
        };
        self.protected = Some(Protected {
            policy,
            idempotency: mounted.idempotency.clone(),
            key,
            owner: request::owner(&self.parts.headers, policy),
            fingerprint: Unfinished::new(&self.parts, policy),
            source: Source::of(&self.parts),
            body_read: !policy.reads_body(),
        });
        Ok(())
    }

    /// An argument that is not the last.
    ///
    /// # Errors
    /// The extractor's rejection.
    pub async fn part<T: FromRequestParts<S>>(&mut self) -> Result<T, Response> {
        T::from_request_parts(&mut self.parts, &self.state).await.map_err(IntoResponse::into_response)
    }

    /// The last argument, which may consume the body.
    ///
    /// # Errors
    /// The extractor's rejection, or that of a body which is too large or breaks off.
    pub async fn last<T: FromRequest<S, M>, M>(&mut self) -> Result<T, Response> {
        self.read_body().await?;
        let (parts, body) = self.take();
        T::from_request(Request::from_parts(parts, body), &self.state).await.map_err(IntoResponse::into_response)
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
        match self.protected.take() {
            Some(protected) => protected.run(policy, scope, body).await,
            None => body.await.into_response(),
        }
    }

    /// Reads the body where the fingerprint needs it, and puts it back for the extractor.
    async fn read_body(&mut self) -> Result<(), Response> {
        if self.protected.as_ref().is_none_or(|protected| protected.body_read) {
            return Ok(());
        }
        let bytes = request::buffer(&mut self.parts, mem::take(&mut self.body)).await?;
        if let Some(protected) = &mut self.protected {
            protected.fingerprint.body(&bytes, protected.policy);
            protected.body_read = true;
        }
        self.body = Body::from(bytes);
        Ok(())
    }

    fn take(&mut self) -> (Parts, Body) {
        let (nothing, ()) = http::Request::new(()).into_parts();
        (mem::replace(&mut self.parts, nothing), mem::take(&mut self.body))
    }
}

impl Protected {
    async fn run<F>(self, policy: &'static Policy, evaluated: Option<ScopeValue>, body: F) -> Response
    where
        F: Future<Output: IntoResponse> + Send + 'static,
    {
        let Self { idempotency, key, owner, mut fingerprint, source, .. } = self;
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
        let run = move |lease| {
            key.runs_under(lease);
            ended(policy, body)
        };
        let answered = if policy.without_store {
            idempotency.dangerously_run_without_store(attempt, run).await
        } else {
            idempotency.run_leased(attempt, run).await
        };
        match answered {
            Ok(Answer::Ran(response)) => response,
            Ok(Answer::Recorded(replay)) => response::replay(policy, replay.answer()).unwrap_or_else(|undecodable| {
                let source = StoreError::unreadable(undecodable);
                Refusal::StoreUnavailable { policy, source }.into_response()
            }),
            Err(refused) => Refusal::of(refused, policy).into_response(),
        }
    }
}

/// Runs the body. A panic, also one while the response is made, becomes a 500 that is recorded under the same rules as any
/// response, since the body may have had effects.
async fn ended<F: Future<Output: IntoResponse>>(policy: &'static Policy, body: F) -> Ended<Response> {
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
