//! The policy: the declared rules of one endpoint.

mod values;

use std::time::Duration;

use axum::response::Response;
use idem_runtime::{Abandoned, Rules};

pub use self::values::{AddedHeader, InFlight, Part, Replay, Scope};
use self::values::{assert_added_header, assert_header_name, assert_refusal_status};
use crate::refusal::{self, Refusal};
use crate::statuses::Statuses;

/// The declared rules of one endpoint. `#[idempotent(..)]` is sugar for a `const` chain on this type, and every option of
/// the attribute has the method of the same name here.
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
/// The methods check their arguments like the attribute does. In a `const` a mistake is a compile error.
#[derive(Clone, Copy, Debug)]
#[must_use = "a policy has no effect until an endpoint names it"]
pub struct Policy {
    /// The name of the header that carries the key, in any case.
    pub(crate) header: &'static str,
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
    /// The statuses whose responses are recorded.
    pub(crate) record: Statuses,
    /// What of a response is given back.
    pub(crate) replay: Replay,
    /// The status of a replay, where it is not the recorded one.
    pub(crate) replay_status: Option<u16>,
    /// The name of the header that marks a replay.
    pub(crate) replay_header: Option<&'static str>,
    /// Headers that a replay carries and the first answer did not.
    pub(crate) replay_with: &'static [AddedHeader],
    /// What a request gets whose key is held by a claim without an owner.
    pub(crate) abandoned: Abandoned,
    /// The largest response that is recorded, in bytes of its body.
    pub(crate) max_response: usize,
    /// Makes the response of a refusal.
    pub(crate) errors: fn(&Refusal) -> Response,
    /// Whether the body runs without protection where the store cannot be asked.
    pub(crate) without_store: bool,
    /// Whether nothing is enforced.
    pub(crate) shadow: bool,
}

impl Policy {
    /// What holds where nothing else is declared: draft-ietf-httpapi-idempotency-key-header-07, with an optional key.
    pub const DEFAULT: Self = Self {
        header: "idempotency-key",
        required: false,
        min_key: 1,
        ttl: Rules::DEFAULT.ttl,
        fingerprint: &[Part::Method, Part::Path, Part::Query, Part::Body],
        scope: Scope::Caller,
        in_flight: InFlight::reject(409),
        mismatch: 422,
        record: Statuses::ALL,
        replay: Replay::ALL,
        replay_status: None,
        replay_header: Some("idempotent-replayed"),
        replay_with: &[],
        abandoned: Abandoned::Refuse,
        max_response: 1024 * 1024,
        errors: refusal::problem,
        without_store: false,
        shadow: false,
    };

    /// Stripe's rules: status and body are kept for 24 hours, errors included; other parameters under the same key are
    /// 400, a concurrent request is 409; errors have Stripe's shape, and a replayed server error tells Stripe's clients
    /// that another retry would get the same.
    pub const STRIPE: Self = Self::DEFAULT
        .mismatch(400)
        .replay(Replay::STATUS.and(Replay::BODY))
        .replay_with(&[AddedHeader::new("stripe-should-retry", "false").on(Statuses::SERVER_ERROR)])
        .errors(refusal::stripe);

    /// The name of the header that carries the key, in any case. Default: `Idempotency-Key`.
    ///
    /// # Panics
    /// Unless `name` is a header name, a token of RFC 9110.
    pub const fn header(mut self, name: &'static str) -> Self {
        assert_header_name(name);
        self.header = name;
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

    /// The shortest key accepted, 1 to 255 characters. Default: 1.
    ///
    /// # Panics
    /// Unless `characters` is 1 to 255.
    pub const fn min_key(mut self, characters: usize) -> Self {
        assert!(characters >= 1 && characters <= idem_runtime::MAX_KEY, "`min_key` is 1 to 255 characters");
        self.min_key = characters;
        self
    }

    /// How long a record lives, counted from completion; replays do not move it. Default: 24 hours.
    ///
    /// # Panics
    /// If `ttl` is zero.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        assert!(!ttl.is_zero(), "`ttl` must be longer than zero");
        self.ttl = ttl;
        self
    }

    /// What must be equal on a retry, in any order. The endpoint (method and route template) always takes part. Default:
    /// method, path, query and body.
    ///
    /// # Panics
    /// If a part names a header that cannot be one, or has no JSON pointer where it needs one.
    pub const fn fingerprint(mut self, parts: &'static [Part]) -> Self {
        let mut index = 0;
        while index < parts.len() {
            if let Part::Header(name) = parts[index] {
                assert_header_name(name);
            }
            if let Part::JsonPointers(pointers) = parts[index] {
                assert!(!pointers.is_empty(), "`Part::JsonPointers` needs a pointer: `Part::Json` is the whole body");
            }
            index += 1;
        }
        self.fingerprint = parts;
        self
    }

    /// Whose key it is. Default: the caller's, by the `Authorization` header.
    ///
    /// # Panics
    /// If it names a header that cannot be one.
    pub const fn scope(mut self, scope: Scope) -> Self {
        assert!(
            !matches!(scope, Scope::Arguments),
            "only the attribute knows the arguments: write `scope = user.id` there"
        );
        if let Scope::Header(name) = scope {
            assert_header_name(name);
        }
        self.scope = scope;
        self
    }

    /// What generated code calls for a scope that it evaluates itself.
    #[doc(hidden)]
    pub const fn scope_of_arguments(mut self) -> Self {
        self.scope = Scope::Arguments;
        self
    }

    /// What a request gets whose key is in flight with the same fingerprint. Default: 409.
    pub const fn in_flight(mut self, in_flight: InFlight) -> Self {
        self.in_flight = in_flight;
        self
    }

    /// The status of a refusal for another fingerprint, 400 to 599. Default: 422.
    ///
    /// # Panics
    /// Unless `status` is 400 to 599.
    pub const fn mismatch(mut self, status: u16) -> Self {
        assert_refusal_status(status);
        self.mismatch = status;
        self
    }

    /// The statuses whose responses are recorded; any other response releases the claim, and a retry runs the body again.
    /// Default: all.
    pub const fn record(mut self, statuses: Statuses) -> Self {
        self.record = statuses;
        self
    }

    /// What of a response is given back. Default: status, headers and body.
    pub const fn replay(mut self, replay: Replay) -> Self {
        self.replay = replay;
        self
    }

    /// The status of a replay, 200 to 599, instead of the recorded one.
    ///
    /// # Panics
    /// Unless `status` is 200 to 599.
    pub const fn replay_status(mut self, status: u16) -> Self {
        assert!(status >= 200 && status <= 599, "`replay_status` is 200 to 599");
        self.replay_status = Some(status);
        self
    }

    /// The name of the header that marks a replay, with the value `true`. Default: `Idempotent-Replayed`.
    ///
    /// # Panics
    /// Unless `name` is a header name, and one that may be replayed.
    pub const fn replay_header(mut self, name: &'static str) -> Self {
        assert_added_header(name);
        self.replay_header = Some(name);
        self
    }

    /// Does not mark replays.
    pub const fn no_replay_header(mut self) -> Self {
        self.replay_header = None;
        self
    }

    /// Headers that a replay carries and the first answer did not, in place of recorded ones of the same name. Default:
    /// none but the marker.
    pub const fn replay_with(mut self, headers: &'static [AddedHeader]) -> Self {
        self.replay_with = headers;
        self
    }

    /// What a retry gets when the owner of the claim is gone and its outcome unknown. Default: refuse.
    pub const fn abandoned(mut self, abandoned: Abandoned) -> Self {
        self.abandoned = abandoned;
        self
    }

    /// The largest response that is recorded, in bytes of its body. A larger one is sent, and a retry is refused. Default:
    /// 1 MiB.
    ///
    /// # Panics
    /// If `bytes` is 0.
    pub const fn max_response(mut self, bytes: usize) -> Self {
        assert!(bytes > 0, "`max_response` must be more than zero bytes");
        self.max_response = bytes;
        self
    }

    /// Makes the response of a refusal. Default: problem details, RFC 9457.
    pub const fn errors(mut self, errors: fn(&Refusal) -> Response) -> Self {
        self.errors = errors;
        self
    }

    /// Runs the body **without protection** where the store cannot be asked, instead of refusing the request (503): its
    /// answer is not recorded, and as long as the store is down a retry runs the body again.
    ///
    /// A store that is full still refuses, and so does one that finds something under the key that it cannot read: a damaged
    /// record lets no body run.
    ///
    /// Danger: this gives up the promise that the body runs once, exactly when retries come. It is for endpoints that do less
    /// harm twice than not at all, and has no option in the attribute: name a policy.
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
    /// the body runs for every request, in the request's own future, and its own answer is sent. What would have happened is a
    /// metric, `idempotency_shadow_total`, and the field `would` of the request's span. See
    /// [how to roll out](crate::observing#rolling-out).
    pub const fn shadow(mut self) -> Self {
        self.shadow = true;
        self
    }

    /// Enforces the rules: the default.
    pub const fn enforced(mut self) -> Self {
        self.shadow = false;
        self
    }

    /// The name of the header that carries the key, as declared.
    #[must_use]
    pub const fn header_name(&self) -> &'static str {
        self.header
    }

    /// How long a record lives.
    #[must_use]
    pub const fn time_to_live(&self) -> Duration {
        self.ttl
    }

    /// Whether a request without the key is refused.
    #[must_use]
    pub const fn is_required(&self) -> bool {
        self.required
    }

    pub(crate) const fn rules(&self) -> Rules {
        Rules { ttl: self.ttl, wait: self.in_flight.wait, abandoned: self.abandoned }
    }

    /// Whether the body takes part in the fingerprint, and so has to be read before the key is claimed.
    pub(crate) fn reads_body(&self) -> bool {
        self.fingerprint.iter().any(|part| matches!(part, Part::Body | Part::Json | Part::JsonPointers(_)))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::DEFAULT
    }
}
