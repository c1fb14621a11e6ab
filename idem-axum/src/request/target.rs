//! The target of a request: as it was sent, and as the handler sees it if a layer has rewritten it.

use axum::extract::{FromRequestParts, NestedPath, OriginalUri, RawPathParams};
use futures_util::FutureExt;
use http::Uri;
use http::request::Parts;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// What has a meaning in a path, and is escaped in a parameter of one.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'/').add(b'?').add(b'#');

/// Returns the target of the request as it was sent: a nested router cuts a prefix off the one in `parts`.
pub(crate) fn sent_uri(parts: &Parts) -> &Uri {
    parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |OriginalUri(uri)| uri)
}

/// Returns the path that the handler sees, if a layer between two routers has rewritten the one that was sent. What nested routers cut off
/// its start is no such change. If that start was rewritten, it is a part of what is returned: a handler may see it by its parameters.
pub(crate) fn rewritten_path(parts: &mut Parts) -> Option<String> {
    let nested = parts.extensions.get::<NestedPath>().cloned();
    let prefix = nested.as_ref().map_or("", NestedPath::as_str).trim_end_matches('/');
    // This extractor never waits.
    let params = prefix.contains('{').then(|| RawPathParams::from_request_parts(parts, &()).now_or_never());
    let params = params.flatten().and_then(Result::ok);
    let (sent, seen) = (sent_uri(parts).path(), parts.uri.path());
    let (start, rest) = match prefix.matches('/').count() {
        0 => ("", sent),
        segments => sent.match_indices('/').nth(segments).map_or((sent, "/"), |(start, _)| sent.split_at(start)),
    };
    let (mut params, mut sent_segments) = (params.iter().flatten(), start.split('/').skip(1));
    let (mut routed, mut is_as_sent) = (String::new(), true);
    for segment in prefix.split('/').skip(1) {
        let name = segment.strip_prefix('{').and_then(|name| name.strip_suffix('}'));
        let param = name.and_then(|name| params.find(|(param, _)| *param == name));
        let sent = sent_segments.next();
        routed.push('/');
        if let Some((_, value)) = param {
            is_as_sent &= sent.is_some_and(|sent| percent_decode_str(sent).eq(value.bytes()));
            routed.extend(utf8_percent_encode(value, ESCAPED));
        } else {
            is_as_sent &= sent == Some(segment);
            routed.push_str(segment);
        }
    }
    if !is_as_sent {
        return Some(routed + seen);
    }
    (seen != rest).then(|| seen.to_owned())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::extract::Request;
    use axum::routing::{any, any_service};
    use http::HeaderValue;
    use tower::ServiceExt;
    use tower::util::MapRequestLayer;

    use super::*;

    /// Returns what a handler beneath nested routers finds, for a request whose path becomes `routed` between two routers.
    async fn rewritten(sent: &str, routed: &str) -> Option<String> {
        let report = any(async |request: Request| rewritten_path(&mut request.into_parts().0).unwrap_or_default());
        let within = Router::new().route("/o", report.clone()).route("/o/{id}", report.clone()).fallback(report);
        // The parameters of a route that is no nested router are between theirs.
        let inner = Router::new().nest("/in/{b}", within.clone());
        let tenants = Router::new()
            .nest("/t/{tenant}", within.clone())
            .nest_service("/s/{tenant}/", within.clone())
            .nest("/twice/{id}", Router::new().nest_service("/{id}", within.clone()))
            .nest("/v1", within.clone())
            .nest("/u/{tenant}", within.clone())
            .nest("/of/{tenant}/v1", within.clone())
            .nest("/split/{a}", Router::new().route("/{x}/{*rest}", any_service(inner)))
            .merge(within);
        let rewrite = MapRequestLayer::new(|mut request: Request| {
            *request.uri_mut() = request.headers()["routed"].to_str().unwrap().parse().unwrap();
            request
        });
        let app = Router::new().fallback_service(tenants).layer(rewrite);
        let request = Request::post(sent).header("routed", HeaderValue::from_str(routed).unwrap());
        let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Some(String::from_utf8(body.into()).unwrap()).filter(|path| !path.is_empty())
    }

    #[tokio::test]
    async fn a_path_that_is_only_cut_by_nested_routers_is_as_sent() {
        for path in [
            "/",
            "//",
            "/o",
            "/o/1",
            "/v1",
            "/v1/",
            "/v1/o",
            "/v1/else/where/",
            "/t/acme",
            "/t/acme/",
            "/t/acme/o/1",
            "/t/%61cm%C3%A9%2F%20/o",
            "/s/acme/",
            "/s/acme/o",
            "/twice/1/2/o/3",
            "/twice/1/2/else",
            "/split/1/in/2/o",
            "*",
        ] {
            assert_eq!(rewritten(path, path).await, None, "{path}");
        }
    }

    #[tokio::test]
    async fn a_path_that_was_rewritten_is_returned_as_it_was_routed() {
        for (sent, routed) in [
            ("/o", "/t/acme/o"),
            ("/by-header/x/o", "/t/acme/o"),
            ("/t/acme/o", "/t/other/o"),
            ("/t/acme/o", "/v1/o"),
            ("/t/acme/o", "/v1/acme/o"),
            ("/v2/o", "/v1/o"),
            ("/", "/v1/"),
            ("/s/acme/o", "/s/other/o"),
            ("/twice/1/2/o", "/twice/1/3/o"),
            ("/twice/1/2/o", "/twice/2/1/o"),
            ("/t/acme/o", "/t/a%2Fb%25%20%3F%23/o"),
            ("/v1x/o", "/v1/x/o"),
            ("/u/acme/o", "/t/acme/o"),
            ("/of/acme/v1/o", "/of/other/v1/o"),
            ("/t/{tenant}/o", "/t/acme/o"),
        ] {
            assert_eq!(rewritten(sent, routed).await.as_deref(), Some(routed), "{sent} {routed}");
        }
        // The start is as it was sent, so the rest says it.
        assert_eq!(rewritten("/t/acme/o", "/t/acme/o/1").await.as_deref(), Some("/o/1"));
        assert_eq!(rewritten("/t/acme", "/t/acme/o").await.as_deref(), Some("/o"));
    }
}
