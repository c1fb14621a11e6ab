//! The end of a request whose handler does not run.

use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use http::StatusCode;

use super::keyed::RequestKey;
use crate::context::LayerConfig;
use crate::policy::Refusal;
use crate::request::UnreadBody;

/// A response to a request whose handler does not run, and the body that is discarded first.
pub(super) struct Refused {
    pub(super) response: Response,
    pub(super) unread: UnreadBody,
}

impl Refused {
    /// Returns the response when the body has been discarded.
    pub(super) fn send(&mut self) -> BoxFuture<'static, Response> {
        std::mem::replace(&mut self.unread, UnreadBody::nothing()).discard(std::mem::take(&mut self.response))
    }
}

/// Returns a rejection. If the extractor is that of the key, it is a refusal, and the body is discarded first. Any other is sent
/// as without the attribute. The extractor of a key that the arguments have yet to say is a mistake of the service.
pub(super) fn rejected(config: &LayerConfig, key: &RequestKey, unread: UnreadBody, response: Response) -> Box<Refused> {
    let refusal = response.extensions().get::<Refusal>();
    match (key, refusal) {
        (RequestKey::None(Some(keyless)), Some(refusal)) => keyless.span().refused(refusal.code()),
        (RequestKey::None(_), _) => {}
        (RequestKey::OfArguments(keyed) | RequestKey::Known(keyed, _), _) => keyed.span.rejected(),
    }
    let unread = if refusal.is_some() { unread } else { UnreadBody::nothing() };
    let is_early = matches!((key, refusal), (RequestKey::OfArguments(_), Some(Refusal::KeyMissing { .. })));
    let response = if is_early { StatusCode::INTERNAL_SERVER_ERROR.into_response() } else { config.describe(response) };
    Box::new(Refused { response, unread })
}
