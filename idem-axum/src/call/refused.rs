//! The end of a request whose handler does not run.

use axum::response::Response;
use futures_util::future::BoxFuture;

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
/// as without the attribute.
pub(super) fn rejected(
    config: &LayerConfig,
    key: &mut RequestKey,
    unread: UnreadBody,
    response: Response,
) -> Box<Refused> {
    if let Some(keyed) = key.request() {
        keyed.span.rejected();
    }
    let response = config.describe(response);
    let refused = response.extensions().get::<Refusal>().is_some();
    Box::new(Refused { response, unread: if refused { unread } else { UnreadBody::nothing() } })
}
