//! What a generated function calls, from the arrival of a request to its response.
//!
//! A call goes through three states, each a type: [`Call`] has the request, [`OpenCall`] knows its key, and [`ReadyCall`] has
//! all arguments and runs the handler. Nothing after [`ReadyCall::run`] is generic over the handler.

mod keyed;
mod open;
mod ready;
mod refused;

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, ready};

use axum::Extension;
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::request::Parts;

pub use self::open::OpenCall;
pub use self::ready::ReadyCall;
use crate::policy::Policy;

/// A request to a generated function. It is an axum extractor, and the only argument of that function.
pub struct Call<S>(Kind<S>);

enum Kind<S> {
    /// Boxed, since it goes from state to state, and the futures of the extractors hold it.
    Request(Box<SplitRequest>, S),
    /// No request: only the policy is asked for.
    Probe,
}

/// A request, as extractors take it.
struct SplitRequest {
    parts: Parts,
    body: Body,
}

impl SplitRequest {
    fn join(self: Box<Self>) -> Request {
        Request::from_parts(self.parts, self.body)
    }
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

    /// Not an async function, whose future would hold the request.
    fn from_request(request: Request, state: &S) -> impl Future<Output = Result<Self, Infallible>> + Send {
        let (parts, body) = request.into_parts();
        ready(Ok(Self(Kind::Request(Box::new(SplitRequest { parts, body }), state.clone()))))
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
            Kind::Request(request, state) => Ok(OpenCall::new(request, state, policy)),
            Kind::Probe => Err(Extension(Declared(policy)).into_response()),
        }
    }
}
