//! The policy: the declared rules of one endpoint.
//!
//! `values` has the types of the options, `statuses` the sets of `record`, and `validate` what a value must be. `refusal` has the table of
//! refusals: status, code, `Retry-After` and event. `render` writes their bodies.

mod refusal;
mod render;
mod statuses;
mod validate;
mod values;

use std::mem::discriminant;
use std::time::Duration;

use axum::response::Response;
use idem_runtime::{Abandoned, PolicyTag, Rules};

pub use self::refusal::Refusal;
pub use self::statuses::Statuses;
pub(crate) use self::validate::NEVER_REPLAYED;
use self::validate::require;
pub(crate) use self::values::Binding;
use self::values::with_name;
pub use self::values::{AddedHeader, InFlight, Part, Replay, Scope};

/// The declared rules of one endpoint. `#[idempotent(..)]` is sugar for a `const` chain on this type. Each option has a method of the same
/// name here, except `policy`, `key`, `crate` and `engine`. Only the attribute takes a `scope` over the arguments.
///
/// ```
/// use std::time::Duration;
/// use idem_axum::{InFlight, Policy, Replay, idempotent};
///
/// const BOOKINGS: Policy = Policy::DEFAULT
///     .header("X-Idempotency-Key")
///     .ttl(Duration::from_secs(48 * 60 * 60))
///     .in_flight(InFlight::reject(423))
///     .replay(Replay::STATUS.and(Replay::BODY));
///
/// #[idempotent(policy = BOOKINGS, required)]
/// async fn book() {}
/// ```
///
/// # Panics
/// The methods refuse what the attribute refuses, and say what to write. In a `const` a mistake is a compile error.
#[derive(Clone, Copy, Debug)]
#[must_use = "a policy has no effect until an endpoint names it"]
pub struct Policy {
    /// The name of the header that carries the key, in any case.
    pub(crate) header: &'static str,
    /// Whether the handler's arguments say the key, and not the header.
    pub(crate) key_from_arguments: bool,
    /// Whether a request without the key is refused. Without it such a request runs unprotected.
    pub(crate) required: bool,
    /// The shortest key accepted, in characters.
    pub(crate) min_key: usize,
    /// How long a record lives, counted from completion.
    pub(crate) ttl: Duration,
    /// What must be equal on a retry, beside the endpoint.
    pub(crate) fingerprint: &'static [Part],
    /// Whose key it is.
    pub(crate) scope: Scope,
    /// What a request gets whose key is in flight.
    pub(crate) in_flight: InFlight,
    /// The status of a refusal for another fingerprint.
    pub(crate) mismatch: u16,
    /// The statuses whose responses are recorded. `None` if the policy does not say.
    pub(crate) record: Option<Statuses>,
    /// What a replay sends of the record.
    pub(crate) replay: Replay,
    /// The status of a replay, if it is not the recorded one.
    pub(crate) replay_status: Option<u16>,
    /// The name of the header that marks a replay.
    pub(crate) replay_header: Option<&'static str>,
    /// Headers that a replay carries and the first response did not.
    pub(crate) replay_with: &'static [AddedHeader],
    /// What a request gets whose key is held by a claim without an owner.
    pub(crate) abandoned: Abandoned,
    /// The largest response that is recorded, in bytes of its body.
    pub(crate) max_response: usize,
    /// How long the handler may run.
    pub(crate) timeout: Option<Duration>,
    /// Makes the response of a refusal.
    pub(crate) errors: fn(&Refusal) -> Response,
    /// Whether the handler runs without protection if the store is unavailable.
    pub(crate) without_store: bool,
    /// Whether nothing is enforced.
    pub(crate) shadow: bool,
    /// A hash of the handler's path, which takes part in the fingerprint.
    pub(crate) handler_hash: [u8; 8],
    /// The tag of the handler's path and of the rules for key, scope and fingerprint.
    pub(crate) tag: PolicyTag,
}

impl Policy {
    /// The defaults: draft-ietf-httpapi-idempotency-key-header-07, with an optional key.
    pub const DEFAULT: Self = Self {
        header: "idempotency-key",
        key_from_arguments: false,
        required: false,
        min_key: 1,
        ttl: Rules::DEFAULT.ttl,
        fingerprint: &[Part::Method, Part::Path, Part::Query, Part::Body],
        scope: Scope::Caller,
        in_flight: InFlight::reject(409),
        mismatch: 422,
        record: None,
        replay: Replay::ALL,
        replay_status: None,
        replay_header: Some("idempotent-replayed"),
        replay_with: &[],
        abandoned: Abandoned::Refuse,
        max_response: 1024 * 1024,
        timeout: None,
        errors: render::problem,
        without_store: false,
        shadow: false,
        handler_hash: [0; 8],
        tag: PolicyTag::NONE,
    };

    /// Stripe's rules: status and body are recorded for 24 hours, server errors included, also with an argument `Tx`. The same key with other
    /// parameters gets 400, and a concurrent request gets 409. Errors have Stripe's shape. A replayed server error tells Stripe's clients
    /// that another retry would get the same.
    pub const STRIPE: Self = Self::DEFAULT
        .mismatch(400)
        .record(Statuses::ALL)
        .replay(Replay::STATUS.and(Replay::BODY))
        .replay_with(&[AddedHeader::new("stripe-should-retry", "false").on(Statuses::SERVER_ERROR)])
        .errors(render::stripe);

    /// The rules for receivers of webhooks, whose senders repeat a delivery until they get a 2xx. Only successes are recorded, for 7 days.
    /// Only the key of a delivery counts, and not its content or its caller. The same key on another path is another key.
    ///
    /// For use with `key = event.id` if the id is in the body, or `header = "webhook-id"` if it is in a header. Verify the signature
    /// in an extractor, since extractors run first.
    ///
    /// ```
    /// use axum::Json;
    /// use idem_axum::{Policy, idempotent};
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Event {
    ///     id: String,
    /// }
    ///
    /// #[idempotent(policy = Policy::WEBHOOK, key = event.id, required)]
    /// async fn receive_event(Json(event): Json<Event>) {}
    ///
    /// #[idempotent(policy = Policy::WEBHOOK, header = "webhook-id", required)]
    /// async fn receive() {}
    /// ```
    pub const WEBHOOK: Self = Self::DEFAULT
        .ttl(Duration::from_secs(7 * 24 * 60 * 60))
        .record(Statuses::SUCCESS)
        .no_fingerprint()
        .scope(Scope::GlobalAndPath);

    /// The rules of the Agentic Commerce Protocol, version 2026-04-17 (`rfc.agentic_checkout.md`, 6.1 to 6.8): the key is
    /// required, it is bound to the caller and the path, the body is compared as JSON, and server errors are not recorded.
    /// Refusals have the protocol's flat errors and its codes: `idempotency_key_required` (400), `idempotency_conflict` (422) and
    /// `idempotency_in_flight` (409).
    ///
    /// The caller is bound by the `Authorization` header: another caller who uses the same key on the same path gets a conflict. In
    /// section 6.1 keys of two callers are independent. For that, and if a token may change between two tries, declare
    /// `scope = (user.id, path)`.
    ///
    /// ```
    /// use idem_axum::{Policy, idempotent};
    ///
    /// #[idempotent(policy = Policy::ACP)]
    /// async fn create_checkout_session() {}
    /// ```
    pub const ACP: Self = Self::DEFAULT
        .required()
        .fingerprint(&[Part::Json])
        .scope(Scope::Path)
        .record(Statuses::ALL.minus(Statuses::SERVER_ERROR))
        .errors(render::acp);

    /// Sets the name of the header that carries the key, in any case. Default: `Idempotency-Key`.
    ///
    /// # Panics
    /// Unless `name` is a header name, a token of RFC 9110.
    pub const fn header(mut self, name: &'static str) -> Self {
        require(validate::header_name(name));
        self.header = name;
        self
    }

    /// For generated code that evaluates the key itself. The header does not count then, and neither does the shortest key.
    #[doc(hidden)]
    pub const fn key_from_arguments(mut self) -> Self {
        self.key_from_arguments = true;
        self
    }

    /// Refuses a request without the key (400).
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// Runs a request without the key unprotected: the default.
    pub const fn optional(mut self) -> Self {
        self.required = false;
        self
    }

    /// Sets the shortest key accepted, 1 to 255 characters. Default: 1.
    ///
    /// # Panics
    /// Unless `characters` is 1 to 255.
    pub const fn min_key(mut self, characters: usize) -> Self {
        require(validate::min_key(characters));
        self.min_key = characters;
        self
    }

    /// Sets how long a record lives, counted from completion. Replays do not extend that. Default: 24 hours.
    ///
    /// # Panics
    /// If `ttl` is zero, or more than 100 years.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        require(validate::ttl(ttl));
        self.ttl = ttl;
        self
    }

    /// Sets what must be equal on a retry, in any order. The endpoint (method and route template) and the handler's own path always take
    /// part. Default: method, path, query and body.
    ///
    /// # Panics
    /// If there is no part, or a part occurs twice. If a part names an invalid header, has no JSON pointer, or has a malformed one.
    pub const fn fingerprint(mut self, parts: &'static [Part]) -> Self {
        Part::require_all(parts);
        self.fingerprint = parts;
        self
    }

    /// Compares nothing of a request but its endpoint, its handler and, unless the scope says otherwise, its caller: as
    /// `fingerprint = none`. A retry with another body gets the recorded response.
    pub const fn no_fingerprint(mut self) -> Self {
        self.fingerprint = &[];
        self
    }

    /// Sets whose key it is. Default: the caller's, by the `Authorization` header, or by `Cookie` if there is no `Authorization`.
    ///
    /// # Panics
    /// If `scope` names an invalid header, or the handler's arguments, which a policy does not know.
    pub const fn scope(mut self, scope: Scope) -> Self {
        assert!(!matches!(scope, Scope::Arguments | Scope::ArgumentsAndPath), "{}", validate::SCOPE_OF_ARGUMENTS);
        if let Binding::Header(name) = scope.binding() {
            require(validate::header_name(name));
        }
        self.scope = scope;
        self
    }

    /// For generated code that evaluates the scope itself.
    #[doc(hidden)]
    pub const fn scope_of_arguments(mut self) -> Self {
        self.scope = Scope::Arguments;
        self
    }

    /// For generated code that evaluates the scope itself, beside `path`.
    #[doc(hidden)]
    pub const fn scope_of_arguments_and_path(mut self) -> Self {
        self.scope = Scope::ArgumentsAndPath;
        self
    }

    /// Sets what a request gets if its key is in flight with the same fingerprint. Default: 409.
    pub const fn in_flight(mut self, in_flight: InFlight) -> Self {
        self.in_flight = in_flight;
        self
    }

    /// Sets the status of a refusal for another fingerprint, 400 to 599. Default: 422.
    ///
    /// # Panics
    /// Unless `status` is 400 to 599.
    pub const fn mismatch(mut self, status: u16) -> Self {
        require(validate::mismatch(status));
        self.mismatch = status;
        self
    }

    /// Sets the statuses whose responses are recorded; any other response releases the claim, and a retry runs the handler again. Default:
    /// all.
    ///
    /// # Panics
    /// If `statuses` is empty.
    pub const fn record(mut self, statuses: Statuses) -> Self {
        assert!(!statuses.is_empty(), "{}", validate::NOTHING_RECORDED);
        self.record = Some(statuses);
        self
    }

    /// Returns the statuses whose responses are recorded, of a handler with a transaction or without one.
    pub(crate) const fn recorded(&self, has_transaction: bool) -> Statuses {
        match self.record {
            Some(statuses) => statuses,
            // What it wrote is rolled back, so a retry is meant to run it again.
            None if has_transaction => Statuses::ALL.minus(Statuses::SERVER_ERROR),
            None => Statuses::ALL,
        }
    }

    /// Sets what a replay sends of the record. Default: status, headers and body.
    ///
    /// # Panics
    /// If the body is not replayed, and there is a [`replay_status`](Self::replay_status).
    pub const fn replay(mut self, replay: Replay) -> Self {
        assert!(replay.body || self.replay_status.is_none(), "{}", validate::STATUS_WITHOUT_BODY);
        self.replay = replay;
        self
    }

    /// Sets the status of a replay, 200 to 599, instead of the recorded one.
    ///
    /// # Panics
    /// If `status` is not 200 to 599, or if [`replay`](Self::replay) leaves out the body.
    pub const fn replay_status(mut self, status: u16) -> Self {
        require(validate::replay_status(status));
        assert!(self.replay.body, "{}", validate::STATUS_WITHOUT_BODY);
        self.replay_status = Some(status);
        self
    }

    /// Sets the name of the header that marks a replay, with the value `true`. Default: `Idempotent-Replayed`.
    ///
    /// # Panics
    /// If `name` is not a header name, is never replayed, or has a meaning in responses, as `Location` and `Retry-After` have.
    pub const fn replay_header(mut self, name: &'static str) -> Self {
        require(validate::marker(name));
        self.replay_header = Some(name);
        self
    }

    /// Does not mark replays.
    pub const fn no_replay_header(mut self) -> Self {
        self.replay_header = None;
        self
    }

    /// Sets headers that are added to replays. They replace recorded headers of the same name. Default: none. The header that marks a
    /// replay is added without this.
    pub const fn replay_with(mut self, headers: &'static [AddedHeader]) -> Self {
        self.replay_with = headers;
        self
    }

    /// Sets what a retry gets if the owner of the claim disappeared and its outcome is unknown. Default: refuse.
    pub const fn abandoned(mut self, abandoned: Abandoned) -> Self {
        self.abandoned = abandoned;
        self
    }

    /// Sets the largest response that is recorded, in bytes of its body. A larger one is sent, and a retry is refused. Default: 1 MiB.
    ///
    /// # Panics
    /// If `bytes` is 0.
    pub const fn max_response(mut self, bytes: usize) -> Self {
        require(validate::max_response(bytes));
        self.max_response = bytes;
        self
    }

    /// Sets the longest execution. After that time the handler's future is dropped, and the response is
    /// [`Refusal::HandlerTimedOut`] (504), which without a `Tx` is recorded if `record` has that status: the handler may have had
    /// effects. What the handler spawned continues. Default: none.
    ///
    /// The time ends when the handler returns its response; the stream of a response body is not limited. With a `Tx` argument it is, as
    /// far as it is read before the commit. The limit also applies to requests that run unprotected, but not in shadow mode. The async
    /// runtime needs its time driver, which `#[tokio::main]` enables.
    ///
    /// ```
    /// use std::time::Duration;
    /// use idem_axum::{Policy, idempotent};
    ///
    /// const QUICK: Policy = Policy::DEFAULT.timeout(Duration::from_secs(30));
    ///
    /// #[idempotent(policy = QUICK)]
    /// async fn pay() {}
    /// ```
    ///
    /// # Panics
    /// If `longest` is zero, or more than 100 years.
    pub const fn timeout(mut self, longest: Duration) -> Self {
        require(validate::timeout(longest));
        self.timeout = Some(longest);
        self
    }

    /// Makes the response of a refusal. Default: problem details, RFC 9457. [`Refusal`] has an example.
    pub const fn errors(mut self, errors: fn(&Refusal) -> Response) -> Self {
        self.errors = errors;
        self
    }

    /// Runs the handler **without protection** if the store is unavailable, instead of refusing the request (503): its
    /// response is not recorded, and as long as the store is down a retry runs the handler again.
    ///
    /// The request is still refused if the store is full, or cannot read the value under the key.
    ///
    /// Danger: this gives up the guarantee that the handler runs once, exactly when retries come. It is for endpoints that do less harm
    /// twice than not at all. The attribute has no option for it, so declare it in a `const` policy.
    ///
    /// ```
    /// use idem_axum::{Policy, idempotent};
    ///
    /// const BEACON: Policy = Policy::DEFAULT.dangerously_run_without_store();
    ///
    /// #[idempotent(policy = BEACON)]
    /// async fn count_a_visit() {}
    /// ```
    pub const fn dangerously_run_without_store(mut self) -> Self {
        self.without_store = true;
        self
    }

    /// Applies the rules to every request and enforces none of them, to see what they would do on an endpoint that is in use:
    /// the handler runs for every request, in the request's own future, and its own response is sent. What would have happened is
    /// a metric, `idempotency_shadow_total`, and the field `would` of the request's span. See
    /// [how to roll out](crate::guide::observing#rolling-out).
    pub const fn shadow(mut self) -> Self {
        self.shadow = true;
        self
    }

    /// Enforces the rules: the default.
    pub const fn enforced(mut self) -> Self {
        self.shadow = false;
        self
    }

    /// Returns the name of the header that carries the key, as declared. It does not count if the attribute has `key = ..`.
    #[must_use]
    pub const fn header_name(&self) -> &'static str {
        self.header
    }

    /// Returns how long a record lives.
    #[must_use]
    pub const fn time_to_live(&self) -> Duration {
        self.ttl
    }

    /// Returns whether a request without the key is refused.
    #[must_use]
    pub const fn is_required(&self) -> bool {
        self.required
    }

    /// For generated code: names the handler, as the last call of the chain.
    #[doc(hidden)]
    pub const fn declared_at(mut self, handler: &'static str) -> Self {
        let hash = PolicyTag::NONE.with(handler.as_bytes());
        self.handler_hash = hash.to_bytes();
        self.tag = self.tag_of_rules(hash);
        self
    }

    /// Adds the rules for key, scope and fingerprint to the tag of the handler. The order of the parts does not count.
    const fn tag_of_rules(&self, handler: PolicyTag) -> PolicyTag {
        let mut parts = 0;
        let mut index = 0;
        while index < self.fingerprint.len() {
            parts ^= self.fingerprint[index].hash();
            index += 1;
        }
        let key = if self.key_from_arguments {
            // No header has this name.
            handler.with(b"key of arguments")
        } else {
            with_name(handler, self.header)
        };
        key.with(&self.scope.hash()).with(&parts.to_le_bytes())
    }

    pub(crate) const fn rules(&self) -> Rules {
        Rules {
            ttl: self.ttl,
            wait: self.in_flight.wait,
            abandoned: self.abandoned,
            run_without_store: self.without_store,
        }
    }

    /// Returns whether the fingerprint has a part of this kind.
    pub(crate) fn declares(&self, wanted: Part) -> bool {
        self.fingerprint.iter().any(|part| discriminant(part) == discriminant(&wanted))
    }

    /// Returns whether the body takes part in the fingerprint, and so has to be read before the key is claimed.
    pub(crate) fn reads_body(&self) -> bool {
        self.fingerprint.iter().any(|part| matches!(part, Part::Body | Part::Json | Part::JsonPointers(_)))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests;
