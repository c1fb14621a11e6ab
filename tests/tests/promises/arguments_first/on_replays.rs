//! Extractors first: every extractor runs on every request, replays too. One that authenticates guards the record.

use axum::Router;
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use idem_axum::idempotent;
use idem_tests::{Ask, Probe, Setup, post as send};

/// A session that is looked up by a header that takes part in no fingerprint.
struct Session(String);

type Rejection = (StatusCode, &'static str);

fn session(headers: &HeaderMap) -> Result<Session, Rejection> {
    let token = headers.get("x-session").and_then(|token| token.to_str().ok());
    match token {
        Some(token) if token.starts_with("good") => Ok(Session(token.to_owned())),
        _ => Err((StatusCode::UNAUTHORIZED, "log in first")),
    }
}

impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        session(&parts.headers)
    }
}

/// The same, as an extractor of the whole request, which signs the body, say.
struct SignedRequest(Session);

impl<S: Sync> FromRequest<S> for SignedRequest {
    type Rejection = Rejection;

    async fn from_request(request: Request, _: &S) -> Result<Self, Rejection> {
        session(request.headers()).map(Self)
    }
}

#[idempotent]
async fn first(session: Session, State(probe): State<Probe>, body: String) -> String {
    format!("secret {} of {}: {body}", probe.run().await, session.0)
}

#[idempotent]
async fn between(State(probe): State<Probe>, session: Session, body: String) -> String {
    format!("secret {} of {}: {body}", probe.run().await, session.0)
}

#[idempotent]
async fn last(State(probe): State<Probe>, session: Session) -> String {
    format!("secret {} of {}", probe.run().await, session.0)
}

#[idempotent]
async fn signed(State(probe): State<Probe>, SignedRequest(session): SignedRequest) -> String {
    format!("secret {} of {}", probe.run().await, session.0)
}

/// Takes nothing but the credentials that it does not even use.
#[idempotent(fingerprint = method)]
async fn unused(State(probe): State<Probe>, _: Session) -> String {
    format!("secret {}", probe.run().await)
}

const PATHS: [&str; 5] = ["/first", "/between", "/last", "/signed", "/unused"];

fn setup() -> Setup {
    let routes = Router::new()
        .route("/first", post(first))
        .route("/between", post(between))
        .route("/last", post(last))
        .route("/signed", post(signed))
        .route("/unused", post(unused));
    Setup::of(routes)
}

fn ask(path: &str) -> Ask {
    send(path).key("k").body("body")
}

#[tokio::test]
async fn a_replay_without_the_credentials_is_refused_by_the_extractor() {
    for path in PATHS {
        let setup = setup();
        let response = ask(path).header("x-session", "good").to(&setup.app).await;
        response.assert_ran(200);
        for revoked in [ask(path), ask(path).header("x-session", "revoked")] {
            let reply = revoked.to(&setup.app).await;
            assert_eq!((reply.status, reply.text()), (401, "log in first"), "{path}");
        }
        ask(path).header("x-session", "good").to(&setup.app).await.assert_replay_of(&response);
        assert_eq!(setup.probe.runs(), 1, "{path}");
    }
}

#[tokio::test]
async fn a_first_request_without_the_credentials_uses_up_nothing() {
    for path in PATHS {
        let setup = setup();
        assert_eq!(ask(path).to(&setup.app).await.status, 401, "{path}");
        setup.assert_nothing_stored();
        ask(path).header("x-session", "good").to(&setup.app).await.assert_ran(200);
    }
}

#[tokio::test]
async fn without_the_credentials_not_even_a_mismatch_is_told() {
    // 401 whether or not the key is known: no oracle for those who are not logged in.
    for path in PATHS {
        let setup = setup();
        ask(path).header("x-session", "good").to(&setup.app).await.assert_ran(200);
        assert_eq!(ask(path).body("other").to(&setup.app).await.status, 401, "{path}");
        setup.probe.close();
        let (app, running) = (setup.app.clone(), send(path).key("k2").header("x-session", "good"));
        let _running = tokio::spawn(async move { running.to(&app).await });
        setup.probe.started(2).await;
        assert_eq!(send(path).key("k2").to(&setup.app).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn middleware_that_authenticates_guards_the_record_as_well() {
    async fn guard(request: Request, next: Next) -> Result<Response, Rejection> {
        session(request.headers())?;
        Ok(next.run(request).await)
    }
    let unguarded = || Router::new().route("/", post(last)).route("/first", post(first));
    for routes in [unguarded().route_layer(from_fn(guard)), unguarded().layer(from_fn(guard))] {
        let setup = Setup::of(routes);
        ask("/").header("x-session", "good").to(&setup.app).await.assert_ran(200);
        assert_eq!(ask("/").to(&setup.app).await.status, 401);
    }
}

/// An extractor that changes the request must not change what a retry is compared with.
struct RequestEraser;

impl<S: Sync> FromRequestParts<S> for RequestEraser {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        parts.headers.clear();
        parts.extensions.clear();
        parts.uri = "/elsewhere".parse().expect("a URI");
        parts.method = axum::http::Method::PATCH;
        Ok(Self)
    }
}

#[tokio::test]
async fn an_extractor_that_empties_the_request_changes_nothing() {
    #[idempotent]
    async fn erased(_: RequestEraser, State(probe): State<Probe>) -> String {
        format!("run {}", probe.run().await)
    }
    let setup = Setup::of(Router::new().route("/a", post(erased)).route("/b", post(erased)));
    let alice = send("/a").key("k").header("authorization", "alice");
    let response = alice.to(&setup.app).await;
    alice.to(&setup.app).await.assert_replay_of(&response);
    alice.clone().body("x").to(&setup.app).await.assert_refused(422, "idempotency_key_mismatch");
    send("/a")
        .key("k")
        .header("authorization", "bob")
        .to(&setup.app)
        .await
        .assert_refused(422, "idempotency_key_mismatch");
    send("/b")
        .key("k")
        .header("authorization", "alice")
        .to(&setup.app)
        .await
        .assert_refused(422, "idempotency_key_mismatch");
}
