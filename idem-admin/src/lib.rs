//! A page for support: paste a key, see its state, and settle or forget it.
//!
//! ```
//! use axum::http::request::Parts;
//! use axum::{Router, extract::Request, middleware::{Next, from_fn}, response::Response};
//! use idem_admin::Admin;
//! use idem_axum::Idempotency;
//!
//! /// What your authentication finds out, and puts into the extensions of a request.
//! #[derive(Clone)]
//! struct Employee { email: String }
//!
//! async fn sign_in(mut request: Request, next: Next) -> Response {
//!     // .. your session, your single sign-on, your client certificates ..
//!     request.extensions_mut().insert(Employee { email: "ada@example.com".into() });
//!     next.run(request).await
//! }
//!
//! let idempotency = Idempotency::in_memory();
//! let actor = |parts: &Parts| Some(parts.extensions.get::<Employee>()?.email.clone());
//! let admin = Admin::new(idempotency.clone(), actor).title("Shop: idempotency keys");
//! let app: Router = Router::new().nest("/support/keys", admin.router().layer(from_fn(sign_in)));
//! ```
//!
//! # It has no authentication
//! Anyone who reaches the page sees recorded responses, whatever your handlers return, and can make a charge run again. **Mount it behind
//! your authentication.** The page asks the closure `actor` for the name of the operator. If it returns `None` or a blank name, the page
//! shows nothing and does nothing (403). If the closure invents a name, the page has no protection.
//!
//! For people who may look up keys but not change them, mount a second router with [`Admin::read_only`] at another path.
//!
//! # What it does by itself
//! - A form is accepted only if it comes from this page. The browser's headers must show that (`Sec-Fetch-Site`, or `Origin` equal to
//!   `Host`), and the form must contain the value of the page's cookie. The check does not depend on `SameSite`. Behind a proxy that
//!   rewrites `Host` the page needs HTTPS, over which browsers send `Sec-Fetch-Site`.
//! - There is no script on the page, and `Content-Security-Policy` lets none run, whatever was recorded. The page cannot be put
//!   into a frame. Nothing is cached.
//! - A key is sent in the body of a `POST` and never in an address, so that it is in no access log and no history.
//! - Each look-up and each change is an [`Audit`]: a `tracing` event at info, target `idem_admin::audit`, and a call of [`Admin::audit`].
//!   Neither the event nor the call has the key. A look-up or a change runs to its end and is audited, even if the browser disconnects. A
//!   change that the page refuses is audited as refused.
//! - A change is made only if the key is still in the state that the person saw: the page looks once more, and then makes the change.
//!   Between these steps a record may expire or be forgotten, and a retry may record a new response. Then the page forgets that new record.
//!   In the same way, it may revoke or settle an execution that came between. A claim whose owner is alive is never forgotten.
//!
//! # Scripts
//! With `Accept: application/json` a look-up responds in JSON. So does the list of unknown outcomes (`step=unknown`), which has pages: send
//! the `next` of one page as the `from` of the following request. To make changes, call the methods of [`Idempotency`] instead.
//!
//! ```console
//! $ printf %s 'order-17' > key.txt
//! $ curl -H 'Accept: application/json' --data-urlencode key@key.txt \
//!        --data scope=header --data header=X-Tenant --data header_values=acme https://shop.example/support/keys
//! {"state":"recorded","key":"c4a1f09e","endpoint":"POST /orders", ..}
//! ```
//!
//! If the endpoint declares `key = ..`, add `--data source=text`: the key is then taken as it is, and not read as a header.
//!
//! `scope` is `unscoped` (the default), `values` or `header`. `unscoped` is for an endpoint without a scope, or with `global` or `path`
//! alone, and for a request without the header that the scope names. With `scope=values`, the field `values` has one value of the scope on
//! each line. If the scope of the endpoint contains `path`, add the field `path`: method and path as sent, as in
//! `--data-urlencode path='POST /orders/7'`. The status is 404 if the key is free.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use http::request::Parts;
use idem_runtime::Idempotency;

mod audit;
mod change;
mod form;
mod guard;
mod handlers;
mod key_details;
mod list;
mod page;
mod request;
mod state;

pub use audit::{Action, Audit, AuditResult};

use state::AdminState;

/// Sets up the page. See [the crate](self) for an example, and for what it needs: **your authentication in front of it**.
#[must_use = "the page is not there until its router is mounted"]
pub struct Admin {
    state: AdminState,
}

impl Admin {
    /// Makes the page over `idempotency`. `actor` returns the name of the operator, from what your authentication left in the request:
    /// usually an extension, or a header that only your proxy can set. With `None` or a blank name nothing is shown (403).
    ///
    /// The name is shown on the page and written into each [`Audit`].
    pub fn new(idempotency: Idempotency, actor: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        let title = "Idempotency keys".to_owned();
        Self { state: AdminState { idempotency, actor: Box::new(actor), title, read_only: false, audit: None } }
    }

    /// Sets the title at the top of the page, and in the tab of the browser. Default: `Idempotency keys`.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.state.title = title.into();
        self
    }

    /// Allows only look-ups: the page offers no change, and refuses one (403).
    pub fn read_only(mut self) -> Self {
        self.state.read_only = true;
        self
    }

    /// Calls `hook` for each look-up, each change and each change that was refused, after it, in addition to the `tracing` event.
    ///
    /// The hook is called on a worker of the async runtime, so it must not block: send what it gets over a channel. If it panics, the page
    /// responds with 500, and what was done stays done.
    ///
    /// ```
    /// use idem_admin::{Admin, Audit};
    /// use idem_axum::Idempotency;
    ///
    /// let (audits, received) = std::sync::mpsc::channel();
    /// let admin = Admin::new(Idempotency::in_memory(), |_| None)
    ///     .audit(move |audit: &Audit| _ = audits.send(audit.clone()));
    /// ```
    pub fn audit(mut self, hook: impl Fn(&Audit) + Send + Sync + 'static) -> Self {
        self.state.audit = Some(Box::new(hook));
        self
    }

    /// Returns the router: one page at its root. Mount it with `nest`, and put your authentication around it with `layer`.
    pub fn router<S>(self) -> Router<S>
    where
        S: Clone + Send + Sync + 'static,
    {
        Router::new()
            .route("/", get(handlers::show).post(handlers::submit))
            .layer(DefaultBodyLimit::max(form::MAX_FORM))
            .with_state(Arc::new(self.state))
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("title", &self.state.title)
            .field("read_only", &self.state.read_only)
            .finish_non_exhaustive()
    }
}
