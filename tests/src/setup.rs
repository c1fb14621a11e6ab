//! An application under test, with everything a test may want to look at.

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use idem_axum::{Idempotency, IdempotencyBuilder, IdempotencyLayer, ManualClock, MemoryStore};

use crate::{Probe, Server};

/// Routes over a memory store and a stopped clock.
pub struct Setup {
    pub app: Router,
    pub probe: Probe,
    pub store: MemoryStore,
    pub clock: ManualClock,
    pub idempotency: Idempotency,
}

impl Setup {
    pub fn of(routes: Router<Probe>) -> Self {
        Self::with(MemoryStore::new(), |builder| builder, routes)
    }

    pub fn with(
        store: MemoryStore,
        build: impl FnOnce(IdempotencyBuilder) -> IdempotencyBuilder,
        routes: Router<Probe>,
    ) -> Self {
        let clock = ManualClock::new();
        let idempotency = build(Idempotency::builder(store.clone()).clock(clock.clone())).build();
        let (app, probe) = Self::mount(&idempotency, routes);
        Self { app, probe, store, clock, idempotency }
    }

    /// Routes over any engine.
    pub fn mount(idempotency: &Idempotency, routes: Router<Probe>) -> (Router, Probe) {
        let probe = Probe::new();
        let app = routes
            .layer(IdempotencyLayer::new(idempotency.clone()))
            .layer(from_fn_with_state(probe.clone(), Probe::watch))
            .with_state(probe.clone());
        (app, probe)
    }

    /// The same routes without the layer: for handlers without the attribute, and for those who forgot it.
    pub fn bare(routes: Router<Probe>) -> (Router, Probe) {
        let probe = Probe::new();
        let app = routes.layer(from_fn_with_state(probe.clone(), Probe::watch)).with_state(probe.clone());
        (app, probe)
    }

    pub async fn serve(&self) -> Server {
        Server::start(self.app.clone()).await
    }

    /// Until every handler has ended and is recorded.
    pub async fn settled(&self) {
        crate::within("the end of every execution", self.idempotency.drain()).await;
    }

    /// Nothing is claimed and nothing is recorded.
    #[track_caller]
    pub fn assert_nothing_stored(&self) {
        assert_eq!(self.store.usage().entries, 0, "{:?}", self.store);
    }
}

/// Makes the response of the handler that `responding!` declares.
#[derive(Clone)]
pub struct ResponseFactory(pub Arc<dyn Fn() -> Response + Send + Sync>);

/// An application with one endpoint, `POST /`: `responding!([options of the attribute], || response)`.
#[macro_export]
macro_rules! responding {
    ([$($options:tt)*], $make:expr) => {
        $crate::Setup::of($crate::responding!(@routes [$($options)*], $make))
    };
    (@routes [$($options:tt)*], $make:expr) => {{
        #[::idem_axum::idempotent($($options)*)]
        async fn responds_as_told(
            ::axum::extract::State(probe): ::axum::extract::State<$crate::Probe>,
            ::axum::Extension(factory): ::axum::Extension<$crate::ResponseFactory>,
        ) -> ::axum::response::Response {
            probe.run().await;
            (factory.0)()
        }
        let make = $make;
        let respond = move || ::axum::response::IntoResponse::into_response(make());
        let factory = $crate::ResponseFactory(::std::sync::Arc::new(respond));
        ::axum::Router::<$crate::Probe>::new()
            .route("/", ::axum::routing::post(responds_as_told))
            .layer(::axum::Extension(factory))
    }};
}
