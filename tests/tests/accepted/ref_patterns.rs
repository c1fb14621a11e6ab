//! Arguments that a pattern binds by reference, beside `scope`, `key` and `engine`.

#![deny(warnings)]

use axum::{
    Extension, Json, Router,
    body::{Body, to_bytes},
    extract::{FromRequestParts, Path},
    http::{Request, Uri, request::Parts},
    routing::post,
};
use idem_axum::{Idempotency, IdempotencyLayer, RefusalReason, idempotent};
use std::{convert::Infallible, fmt::Display};
use tower::ServiceExt;

#[derive(Clone, serde::Deserialize)]
struct Order {
    id: String,
    lines: Vec<String>,
}

/// A type that no field can be moved out of.
struct Guard(String);

impl Drop for Guard {
    fn drop(&mut self) {}
}

impl<S: Sync> FromRequestParts<S> for Guard {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.uri.path().to_owned()))
    }
}

#[idempotent]
async fn mutable_alone(ref mut text: String) -> String {
    text.push('!');
    text.clone()
}

#[idempotent(scope = tenant.len(), key = text)]
async fn whole(Path(ref tenant): Path<String>, ref text: String) -> String {
    tokio::task::yield_now().await;
    format!("{tenant} {text}")
}

#[idempotent(key = text)]
async fn mutable(ref mut text: String) -> String {
    text.push('!');
    text.clone()
}

#[idempotent(scope = uri.path())]
async fn unused_in_the_handler(ref uri: Uri, ref _text: String) {}

#[idempotent(scope = id)]
async fn fields(Json(Order { ref id, mut lines }): Json<Order>) -> String {
    lines.push(id.clone());
    lines.concat()
}

#[idempotent(key = id)]
async fn tuples(
    (Path(ref id), uri): (Path<String>, Uri),
    Json((ref mut first, second)): Json<(String, String)>,
) -> String {
    first.push_str(&second);
    format!("{id} {uri} {first}")
}

#[idempotent(scope = path)]
async fn guarded(Guard(ref path): Guard) -> String {
    path.clone()
}

#[idempotent(key = path)]
async fn of_an_argument(Guard(ref path): Guard, Json([ref first, ref rest @ .., last]): Json<[String; 3]>) -> String {
    format!("{path} {first} {} {last}", rest.concat())
}

#[idempotent(key = both.id)]
async fn subpattern(Json(ref both @ Order { ref id, .. }): Json<Order>) -> String {
    format!("{} {id}", both.lines.concat())
}

#[idempotent(key = n)]
async fn behind_a_reference(Extension(&(ref name, n)): Extension<&'static (String, u64)>, uri: Uri) -> String {
    format!("{name} {n} {uri}")
}

#[idempotent(scope = one)]
async fn either(Json((Ok(ref one) | Err(ref one), ref two)): Json<(Result<String, String>, String)>) -> String {
    format!("{one} {two}")
}

#[idempotent(key = id)]
async fn generic<T: Display + Clone + Send + Sync + 'static>(Extension(ref id): Extension<T>) -> String {
    id.to_string()
}

#[idempotent(engine = engine, scope = "ship", key = id, fingerprint = lines)]
async fn ship(
    engine: Idempotency,
    Order { ref id, mut lines }: Order,
    ref mut note: String,
    Guard(ref path): Guard,
) -> Result<String, RefusalReason> {
    lines.push(path.clone());
    note.push('!');
    Ok(format!("{id} {} {note}", lines.concat()))
}

#[tokio::test]
async fn runs() {
    let (idempotency, pair) = (Idempotency::in_memory(), &*Box::leak(Box::new(("x".to_owned(), 7_u64))));
    let app = Router::new()
        .route("/mutable_alone", post(mutable_alone))
        .route("/whole/{tenant}", post(whole))
        .route("/mutable", post(mutable))
        .route("/unused_in_the_handler", post(unused_in_the_handler))
        .route("/fields", post(fields))
        .route("/tuples/{id}", post(tuples))
        .route("/guarded", post(guarded))
        .route("/of_an_argument", post(of_an_argument))
        .route("/subpattern", post(subpattern))
        .route("/behind_a_reference", post(behind_a_reference))
        .route("/either", post(either))
        .route("/generic", post(generic::<&'static str, _, _>))
        .layer(Extension(pair))
        .layer(Extension("name"))
        .layer(IdempotencyLayer::new(idempotency.clone()));
    let sent = async |path: &str, body: &'static str| {
        let request = Request::post(path).header("idempotency-key", path).header("content-type", "application/json");
        let response = app.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        assert!(response.status().is_success(), "{path}: {}", response.status());
        String::from_utf8(to_bytes(response.into_body(), 1024).await.unwrap().to_vec()).unwrap()
    };
    let order = r#"{"id":"a","lines":["b"]}"#;
    for (path, body, expected) in [
        ("/mutable_alone", "a", "a!"),
        ("/whole/t", "a", "t a"),
        ("/mutable", "mutable", "mutable!"),
        ("/unused_in_the_handler", "a", ""),
        ("/fields", order, "ba"),
        ("/tuples/1", r#"["a","b"]"#, "1 /tuples/1 ab"),
        ("/guarded", "", "/guarded"),
        ("/of_an_argument", r#"["a","b","c"]"#, "/of_an_argument a b c"),
        ("/subpattern", r#"{"id":"c","lines":["b"]}"#, "b c"),
        ("/behind_a_reference", "", "x 7 /behind_a_reference"),
        ("/either", r#"[{"Err":"a"},"b"]"#, "a b"),
        ("/generic", "", "name"),
    ] {
        assert_eq!(sent(path, body).await, expected, "{path}");
    }
    let order = || Order { id: "a".to_owned(), lines: vec!["b".to_owned()] };
    for _ in 0..2 {
        let shipped = ship(idempotency.clone(), order(), "c".to_owned(), Guard("d".to_owned())).await.unwrap();
        assert_eq!(shipped, "a bd c!");
    }
}
