//! Looking at what stands under a key, for a step or for an operator, and forgetting it.

use bytes::Bytes;
use idem_runtime::{Found, Standing, StorageKey, Timestamp};
use tokio::time::Instant;

use crate::errors::Trouble;
use crate::link::Heard;
use crate::store::{Copies, Inner, Said, run};
use crate::wire::{self, Ends, Name, RECORD_START, Written};

/// How often a step looks that finds, each time, that somebody else was faster.
pub(crate) const LOOKS: u32 = 3;

/// What stood under a key at one moment.
pub(crate) struct Looked {
    pub(crate) value: Bytes,
    pub(crate) written: Written,
    /// How many milliseconds were left to the key. Less than none where a record has no end.
    left: i64,
    /// The time in microseconds, by the server's clock.
    now: u64,
}

impl Looked {
    pub(crate) fn is_over(&self, ends: Ends) -> bool {
        ends.are_over(self.left, self.now)
    }

    /// So many milliseconds after it, or before it, by the server's clock.
    fn after(&self, milliseconds: i64) -> Timestamp {
        let nanoseconds = i128::from(self.now) * 1000 + i128::from(milliseconds) * 1_000_000;
        Timestamp::from_nanos(u64::try_from(nanoseconds.max(0)).unwrap_or(u64::MAX))
    }
}

impl Inner {
    /// What stands under the key. Writes nothing, and waits for no replica.
    pub(crate) async fn look(&self, name: &Name, deadline: Instant) -> Result<Option<Looked>, Trouble> {
        let Heard { answer, .. } = run(&self.link, &self.scripts.look, name, &[], deadline).await?;
        let reply: (Option<Bytes>, i64, (u64, u64)) = redis::from_redis_value(answer).map_err(|_| Trouble::Reply)?;
        let (Some(value), left, (seconds, microseconds)) = reply else { return Ok(None) };
        let now = seconds.saturating_mul(1_000_000).saturating_add(microseconds);
        match wire::read(name, &value) {
            // Somebody has taken its end away, and with it the age of the claim. A record has no age.
            Some(Written::Claim(_)) if left < 0 => Err(Trouble::unreadable(name)),
            Some(written) => Ok(Some(Looked { value, written, left, now })),
            None => Err(Trouble::unreadable(name)),
        }
    }

    /// What stands under the key, as an operator may see it.
    pub(crate) async fn inspect(&self, key: &StorageKey) -> Result<Option<Found>, Trouble> {
        let name = self.name(key);
        let Some(looked) = self.look(&name, self.link.deadline()).await? else { return Ok(None) };
        let mut found = match &looked.written {
            Written::Record(sealed) => Found::new(Standing::Completed(wire::unseal(key, &name, sealed)?)),
            Written::Claim(held) => {
                let over = looked.is_over(held.ends);
                let standing = if over { Standing::Abandoned } else { Standing::InFlight };
                let mut found = Found::new(standing(held.fingerprint));
                found.origin = held.origin.clone();
                found.lease_until = match held.ends {
                    Ends::Left(less_than) => Some(looked.after(looked.left - less_than)),
                    Ends::At(end) => Some(Timestamp::from_nanos(end.saturating_mul(1000))),
                };
                found
            }
        };
        found.expires_at = (looked.left >= 0).then(|| looked.after(looked.left));
        Ok(Some(found))
    }

    /// Removes a record or an abandoned claim, and says whether there was one.
    pub(crate) async fn forget(&self, name: &Name) -> Result<bool, Trouble> {
        let (deadline, channel) = (self.link.deadline(), name.channel());
        for _ in 0..LOOKS {
            let Some(found) = self.look(name, deadline).await? else { return Ok(false) };
            let (start, left) = match &found.written {
                Written::Record(_) => (&found.value[..RECORD_START], None),
                Written::Claim(held) if !found.is_over(held.ends) => return Ok(false),
                Written::Claim(held) => (&found.value[..], held.ends.left()),
            };
            let mut arguments = vec![start, channel.as_bytes()];
            arguments.extend(left.as_ref().map(String::as_bytes));
            let stepped = self.step(&self.scripts.forget, name, &arguments, Copies::One, deadline).await?;
            match stepped.said {
                Said::Done => return Ok(true),
                // What the first of two found is not known.
                Said::Absent | Said::Stands(_) if stepped.repeated => return Err(Trouble::Unheard),
                Said::Absent | Said::NotOver => return Ok(false),
                Said::Stands(_) => {}
            }
        }
        // Somebody claims it, again and again.
        Ok(false)
    }
}
