//! Histories by hand.

use super::*;
use crate::history::{History, LAST_LOOK};

pub(super) const BOUNDS: Bounds = Bounds { response: Duration::from_secs(9), replay: Duration::from_millis(400) };

/// A history by hand: every event a millisecond after the one before.
pub(super) struct HistoryBuilder {
    pub(super) history: History,
    now: Duration,
}

pub(super) fn identity(tenant: &str, fp: &str) -> RequestIdentity {
    RequestIdentity { tenant: tenant.into(), scope: tenant.into(), key: "k".into(), fp: fp.into() }
}

pub(super) fn response(exec: u64) -> SentResponse {
    let headers = [("link", "a"), ("link", "b"), ("set-cookie", "s"), ("x-exec", &canary(exec))];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    SentResponse { status: 201, headers, body: format!("{} \u{ff}", canary(exec)) }
}

pub(super) fn replay(exec: u64) -> SentResponse {
    let mut replay = response(exec);
    replay.headers.retain(|(name, _)| name != "set-cookie");
    replay.headers.push(("idempotent-replayed".into(), "true".into()));
    replay.headers.push(("cache-control".into(), "no-store".into()));
    replay.headers.push(("content-length".into(), "12".into()));
    replay
}

pub(super) fn canary(exec: u64) -> String {
    format!("canary-{exec}-")
}

pub(super) fn refusal(status: u16) -> SentResponse {
    SentResponse { status, headers: Vec::new(), body: "{}".into() }
}

impl HistoryBuilder {
    pub(super) fn new() -> Self {
        Self { history: History::default(), now: Duration::ZERO }
    }

    pub(super) fn event(mut self, event: Event) -> Self {
        self.now += Duration::from_millis(1);
        self.history.write(self.now, event);
        self
    }

    pub(super) fn wait(mut self, seconds: u64) -> Self {
        self.now += Duration::from_secs(seconds);
        self
    }

    pub(super) fn req(self, id: u64, tenant: &str, fp: &str) -> Self {
        self.event(Event::Req { id, client: "c".into(), identity: identity(tenant, fp) })
    }

    /// The last look at the key.
    pub(super) fn look(self, id: u64, tenant: &str, fp: &str) -> Self {
        self.event(Event::Req { id, client: LAST_LOOK.into(), identity: identity(tenant, fp) })
    }

    pub(super) fn start(self, exec: u64, req: u64, tenant: &str, fp: &str) -> Self {
        self.event(Event::Start { exec, req, identity: identity(tenant, fp), canary: canary(exec) })
    }

    pub(super) fn effect(self, exec: u64) -> Self {
        self.event(Event::Effect { exec, n: 1 })
    }

    pub(super) fn end(self, exec: u64) -> Self {
        self.event(Event::End { exec, response: response(exec) })
    }

    pub(super) fn run(self, exec: u64, req: u64, tenant: &str, fp: &str) -> Self {
        self.start(exec, req, tenant, fp).effect(exec).end(exec)
    }

    pub(super) fn first(self, id: u64, exec: u64) -> Self {
        self.event(Event::Resp { id, replayed: false, code: None, response: response(exec) })
    }

    pub(super) fn replay(self, id: u64, exec: u64) -> Self {
        self.event(Event::Resp { id, replayed: true, code: None, response: replay(exec) })
    }

    pub(super) fn refuse(self, id: u64, code: &str, status: u16) -> Self {
        self.event(Event::Resp { id, replayed: false, code: Some(code.into()), response: refusal(status) })
    }

    pub(super) fn lost(self, id: u64) -> Self {
        self.event(Event::Lost { id, why: "patience".into() })
    }

    pub(super) fn crash(self) -> Self {
        self.event(Event::Crash { node: SERVER.into() })
    }

    pub(super) fn violations(&self) -> Vec<Violation> {
        check(&self.history.lines(), BOUNDS)
    }

    #[track_caller]
    pub(super) fn passes(self) {
        assert_eq!(self.violations(), []);
    }

    /// Each of these is violated, and nothing else.
    #[track_caller]
    pub(super) fn violates(self, invariants: &[&str]) {
        let violations = self.violations();
        let found =
            |violation: &Violation| invariants.iter().any(|it| violation.invariant.starts_with(&format!("{it} ")));
        for invariant in invariants {
            let names = violations.iter().map(|violation| violation.invariant);
            assert!(
                names.into_iter().any(|name| name.starts_with(&format!("{invariant} "))),
                "{invariant}: {violations:#?}"
            );
        }
        assert!(violations.iter().all(found), "more than {invariants:?}: {violations:#?}");
    }
}
