//! Random histories.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use proptest_state_machine::strategy::Sequential;

use super::{LEASE, Model, Profile, Step};

const TICK: Duration = Duration::from_nanos(1);
/// Few enough that they meet.
pub(super) const KEYS: u8 = 4;
const FINGERPRINTS: u8 = 2;

/// A strategy that knows the state so far.
pub type Histories = Sequential<Model, Step, BoxedStrategy<Model>, BoxedStrategy<Step>>;

/// Histories of up to `most` calls. Claims are used only while they have an owner, which is all that the types allow.
pub fn histories(profile: Profile, most: usize) -> Histories {
    Sequential::new(
        (1..=most).into(),
        move || Just(Model::new(profile)).boxed(),
        |model, step| match step {
            Step::Complete { claim, .. } | Step::Release { claim } | Step::Drop { claim } | Step::Renew { claim } => {
                model.held().contains(claim)
            }
            _ => true,
        },
        step,
        |mut model, step| {
            model.apply(step);
            model
        },
    )
}

/// Times at which something ends, and the ticks beside them.
fn spans() -> impl Strategy<Value = Duration> {
    let edges = [LEASE / 3, LEASE, 2 * LEASE].map(|edge| [edge - TICK, edge, edge + TICK]);
    select([[Duration::ZERO, TICK, LEASE * 100], edges[0], edges[1], edges[2]].concat())
}

fn step(model: &Model) -> BoxedStrategy<Step> {
    let begin = (0..KEYS, 0..FINGERPRINTS, any::<bool>()).prop_map(|(key, fingerprint, new_owner)| Step::Begin {
        key,
        fingerprint,
        new_owner,
    });
    let forget = (0..KEYS).prop_map(|key| Step::Forget { key });
    // If bytes are counted, no record expires, and time does not pass.
    let timeless = model.profile.bytes.is_some();
    let advance = spans().prop_map(move |by| Step::Advance(if timeless { Duration::ZERO } else { by }));
    let held = model.held();
    if held.is_empty() {
        return prop_oneof![6 => begin, 1 => forget, 2 => advance].boxed();
    }
    let claim = select(held);
    prop_oneof![
        6 => begin,
        1 => forget,
        3 => advance,
        3 => (claim.clone(), spans()).prop_map(move |(claim, ttl)| {
            let ttl = if timeless { LEASE } else { ttl };
            Step::Complete { claim, ttl }
        }),
        1 => claim.clone().prop_map(|claim| Step::Release { claim }),
        1 => claim.clone().prop_map(|claim| Step::Drop { claim }),
        1 => claim.prop_map(|claim| Step::Renew { claim }),
    ]
    .boxed()
}
