//! `record = ..`: which responses are recorded.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::any;
use idem_axum::idempotent;
use idem_tests::{Ask, Probe, Setup, post as send, responding};

fn ask() -> Ask {
    send("/").key("k")
}

#[tokio::test]
async fn record_keeps_what_it_names_and_releases_the_rest() {
    async fn recorded(setup: Setup) -> bool {
        ask().to(&setup.app).await;
        let replayed = ask().to(&setup.app).await.is_replay();
        assert_eq!((setup.probe.runs(), setup.store.usage().entries), if replayed { (1, 1) } else { (2, 0) });
        replayed
    }
    let status = |status: u16| move || StatusCode::from_u16(status).unwrap();
    for (code, expected) in [(200, true), (299, true), (302, false), (404, false), (500, false)] {
        assert_eq!(recorded(responding!([record = success], status(code))).await, expected, "{code}");
    }
    for (code, expected) in [(201, true), (303, true), (400, false), (404, true), (422, false), (500, true)] {
        assert_eq!(recorded(responding!([record = all - 400 - 422], status(code))).await, expected, "{code}");
    }
    for (code, expected) in [(201, true), (302, true), (404, true), (500, false), (503, true)] {
        let setup = responding!([record = success + redirect + client_error + 503], status(code));
        assert_eq!(recorded(setup).await, expected, "{code}");
    }
    for (code, expected) in [(404, true), (500, false), (503, true)] {
        let setup = responding!([record = all - server_error + 503], status(code));
        assert_eq!(recorded(setup).await, expected, "{code}");
    }
}

#[tokio::test]
async fn an_interim_status_is_never_recorded() {
    let setup = responding!([], || StatusCode::SWITCHING_PROTOCOLS);
    ask().to(&setup.app).await;
    assert!(!ask().to(&setup.app).await.is_replay());
    setup.assert_nothing_stored();
}

/// It opens a tunnel, as 101 does: RFC 8441.
#[tokio::test]
async fn an_accepted_connect_is_never_recorded() {
    #[idempotent]
    async fn tunnel(State(probe): State<Probe>, Path(status): Path<u16>) -> StatusCode {
        probe.run().await;
        StatusCode::from_u16(status).unwrap()
    }

    for (status, runs) in [(200, 2), (204, 2), (403, 1)] {
        let setup = Setup::of(Router::new().route("/{status}", any(tunnel)));
        let connect = || Ask::new("CONNECT", &format!("/{status}")).key("k");
        connect().to(&setup.app).await.assert_ran(status);
        assert_eq!(connect().to(&setup.app).await.is_replay(), runs == 1);
        assert_eq!(setup.probe.runs(), runs, "{status}");
    }
}
