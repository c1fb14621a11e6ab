//! The decision: what the store reported and the attempt, in one table. Runs, shadow mode and operators act on its result.

use super::dyn_store::BoxClaim;
use crate::attempt::{Abandoned, Attempt};
use crate::endpoint::PolicyTag;
use crate::error::StoreError;
use crate::execution_info::ExecutionInfo;
use crate::outcome::{RefusalReason, Replay};
use crate::store::Begin;

/// What an attempt gets.
pub(super) enum Decision<C = BoxClaim> {
    /// The key was free: the handler runs under this claim.
    Run(C),
    /// The claim is abandoned: the handler runs once this claim is taken over.
    TakeOver(C),
    /// The store is unavailable, and the policy allows it: the handler runs without a claim.
    RunWithoutStore(StoreError),
    /// The handler does not run now.
    Blocked(Blocked),
}

/// What an attempt gets whose handler does not run now.
pub(super) enum Blocked {
    /// The record is replayed.
    Replay(Replay),
    /// The policy waits for the execution in flight; then the store is asked again.
    Wait,
    /// The key is claimed with another fingerprint. The reason for the refusal is what [`Core::mismatch`](super::Core::mismatch) returns.
    Mismatch,
    /// The request is refused.
    Refuse(RefusalReason),
}

/// Decides what `attempt` gets, after the store reported `begun`.
pub(super) fn decide<C>(attempt: &Attempt, begun: Result<Begin<C>, StoreError>) -> Decision<C> {
    let rules = &attempt.rules;
    Decision::Blocked(match begun {
        Ok(Begin::Claimed(claim)) => return Decision::Run(claim),
        // A claim that is dropped here stays abandoned. It is never released, since its handler may have run.
        Ok(Begin::Abandoned(claim)) => match rules.abandoned {
            Abandoned::Rerun => return Decision::TakeOver(claim),
            Abandoned::Refuse => Blocked::Refuse(RefusalReason::OutcomeUnknown),
        },
        Ok(Begin::InFlight(other)) if other != attempt.fingerprint => Blocked::Mismatch,
        Ok(Begin::InFlight(_)) if rules.wait.is_some() => Blocked::Wait,
        Ok(Begin::InFlight(_)) => Blocked::Refuse(RefusalReason::InFlight),
        Ok(Begin::Completed(record)) if *record.fingerprint() != attempt.fingerprint => {
            Blocked::Refuse(mismatch(attempt, record.execution_info().as_ref()))
        }
        Ok(Begin::Completed(record)) => match record.read() {
            Ok(read) => match read.content {
                Some(content) => Blocked::Replay(Replay { content, record }),
                None => Blocked::Refuse(RefusalReason::NotReplayable),
            },
            Err(error) => Blocked::Refuse(RefusalReason::StoreUnavailable(StoreError::unreadable(error))),
        },
        Err(StoreError::Full) => Blocked::Refuse(RefusalReason::StoreFull),
        // The handler has run, or may have, so it does not run without protection either.
        Err(error @ StoreError::Unreadable(_)) => Blocked::Refuse(RefusalReason::StoreUnavailable(error)),
        Err(error) if rules.run_without_store => return Decision::RunWithoutStore(error),
        Err(error) => Blocked::Refuse(RefusalReason::StoreUnavailable(error)),
    })
}

/// Returns why `attempt` is refused if `info` is that of a request with another fingerprint under the same key.
///
/// Two endpoints have different policies, and a request to another endpoint is another request under any of them. If one of the
/// two policies has no tag, nothing is known of a change.
pub(super) fn mismatch(attempt: &Attempt, info: Option<&ExecutionInfo>) -> RefusalReason {
    let Some(info) = info else { return RefusalReason::Mismatch };
    let tags = [info.policy(), attempt.policy];
    if info.endpoint() == attempt.endpoint.as_str() && tags[0] != tags[1] && !tags.contains(&PolicyTag::NONE) {
        RefusalReason::PolicyChanged
    } else {
        RefusalReason::Mismatch
    }
}
