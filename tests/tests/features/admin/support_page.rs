//! The page over an application, and a person who fills in its forms.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use axum::routing::post;
use idem_admin::{Admin, Audit};
use idem_axum::Idempotency;
use idem_axum::idempotent;
use idem_tests::{Ask, Probe, Reply, Setup, get, post as send};
use tokio::runtime::{Builder, Runtime};

/// A handler whose response is recorded.
#[idempotent]
pub async fn pay(State(probe): State<Probe>) -> impl IntoResponse {
    ([("x-run", probe.run().await.to_string())], "paid")
}

pub fn setup() -> Setup {
    Setup::of(Router::new().route("/pay", post(pay)))
}

pub fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A key whose handler was dropped together with the runtime it ran on, as in a crash.
pub fn torn_down(setup: &Setup, ask: &Ask) {
    setup.probe.close();
    let crashing = runtime();
    crashing.block_on(async {
        let (app, ask) = (setup.app.clone(), ask.clone());
        drop(tokio::spawn(async move { ask.to(&app).await }));
        setup.probe.started(1).await;
    });
    drop(crashing);
    setup.probe.open();
}

/// The page, at `/keys`, for those who say in `X-Employee` who they are.
pub struct SupportPage {
    pub app: Router,
    audits: Arc<Mutex<Vec<Audit>>>,
}

impl SupportPage {
    pub fn over(idempotency: &Idempotency) -> Self {
        Self::with(idempotency, |admin| admin)
    }

    pub fn with(idempotency: &Idempotency, set: impl FnOnce(Admin) -> Admin) -> Self {
        let audits = Arc::<Mutex<Vec<Audit>>>::default();
        let written = audits.clone();
        let hook = move |audit: &Audit| written.lock().unwrap().push(audit.clone());
        let actor = |parts: &Parts| Some(parts.headers.get("x-employee")?.to_str().ok()?.to_owned());
        let admin = set(Admin::new(idempotency.clone(), actor).audit(hook));
        Self { app: Router::new().nest("/keys", admin.router()), audits }
    }

    /// What was audited since the last time one asked: action, endpoint and result.
    pub fn audits(&self) -> Vec<String> {
        let audits = std::mem::take(&mut *self.audits.lock().unwrap());
        let line = |audit: &Audit| {
            assert_eq!(audit.actor, "ada");
            format!("{} {} {}", audit.action, audit.endpoint.as_deref().unwrap_or("-"), audit.result)
        };
        audits.iter().map(line).collect()
    }

    /// Sends a form as a browser does that has the page's cookie.
    pub async fn send(&self, fields: &[(&str, &str)]) -> Reply {
        let mut fields = fields.to_vec();
        fields.push(("token", TOKEN));
        self.at_home(&fields).to(&self.app).await
    }

    /// The same, before it is sent.
    pub fn at_home(&self, fields: &[(&str, &str)]) -> Ask {
        form(fields).header("sec-fetch-site", "same-origin").header("cookie", format!("a=b; idem-admin={TOKEN}"))
    }

    /// Looks a key up, asks for a change of it, and confirms that.
    pub async fn change(&self, fields: &[(&str, &str)], step: &str) -> Reply {
        let seen = self.seen(fields, step).await;
        let now = format!("{step}-now");
        self.send(&[fields, &[("step", &now), ("seen", &seen)]].concat()).await
    }

    /// What the page that asks for confirmation carries of the key's state.
    pub async fn seen(&self, fields: &[(&str, &str)], step: &str) -> String {
        let asked = self.send(&[fields, &[("step", step)]].concat()).await;
        let html = asked.text();
        let value =
            html.split_once("name=\"seen\" value=\"").unwrap_or_else(|| panic!("nothing to confirm:\n{html}")).1;
        value.split_once('"').unwrap().0.to_owned()
    }

    /// The look-up of a script.
    pub async fn json(&self, fields: &[(&str, &str)]) -> Reply {
        form(fields).header("accept", "application/json").to(&self.app).await
    }
}

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A form, without anything that a browser adds.
pub fn form(fields: &[(&str, &str)]) -> Ask {
    let escaped = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let pairs: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
    send("/keys")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("x-employee", "ada")
        .body(pairs.join("&"))
}

pub fn page() -> Ask {
    get("/keys").header("x-employee", "ada")
}
