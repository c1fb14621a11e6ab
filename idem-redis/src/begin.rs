//! Claiming a key: one plain command where the key is free or has a record.
//!
//! `SET NX GET` is one atomic step of the server: of any number of them on one key, one finds nothing and writes its claim,
//! and the others get what stands there and write nothing. So the answer alone says who may run the body:
//!
//! - Nothing: the claim of this owner stands. Its age begins with this command.
//! - This very claim: the command was sent twice, since an answer was lost, and the first one took effect. Nobody else knows the
//!   token, so nobody has run a body under it. It is renewed, which also gives replicas a write to acknowledge on this
//!   connection; if it cannot be, it was not granted, and is given back.
//! - Anything else, from a command that was sent twice: the first one may arrive later still, when the key is free, and make a
//!   claim without an owner. It is given back as well.
//! - A record, or a claim for another request: there is nothing more to ask.
//! - A claim for the same request: whether its lease is over, only the server's clock can say. A script looks at the value and at
//!   what is left of its life in one step, and writes nothing: taking over is another step, which compares again.

use std::sync::Arc;

use bytes::Bytes;
use idem_runtime::{Begin, Fingerprint, StorageKey, StoreError, Terms};
use redis::{Value, cmd};
use tokio::time::Instant;

use crate::claim::{Former, RedisClaim};
use crate::errors::Trouble;
use crate::link::Heard;
use crate::look::{LOOKS, Looked};
use crate::store::{Copies, Inner, Said, run};
use crate::wire::{self, Name, Owner, Times, Written};

/// What one owner asks for.
struct Wanted<'a> {
    inner: &'a Inner,
    name: &'a Name,
    fingerprint: &'a Fingerprint,
    claim: &'a Bytes,
    lives: String,
    deadline: Instant,
    /// Whether this claim stands, or may come to stand, although it was not granted.
    doubt: bool,
}

/// What it gets.
enum Got {
    /// The claim stands. The error says that it is not in as many copies as it must be.
    Granted(Result<(), Trouble>),
    InFlight(Fingerprint),
    Abandoned(Former),
    Record(Bytes),
}

pub(crate) async fn begin(
    inner: &Arc<Inner>,
    key: &StorageKey,
    fingerprint: &Fingerprint,
    terms: &Terms<'_>,
) -> Result<Begin<RedisClaim>, StoreError> {
    let &Terms { lease, ttl, .. } = terms;
    let (name, mut owner, times) = (inner.name(key), Owner::random()?, Times::new(lease, ttl));
    let origin = terms.origin();
    let mut claim = wire::claim(&name, owner, times, fingerprint, origin.as_ref());
    let (lives, deadline) = (times.lives.to_string(), inner.link.deadline());
    let mut wanted = Wanted { inner, name: &name, fingerprint, claim: &claim, lives, deadline, doubt: false };
    // From here on there may be a claim of which nobody knows.
    let unheard = inner.orphans.guard(&name, &claim, lease);
    let got = wanted.get().await;
    let doubt = wanted.doubt;
    let got = match got {
        Ok(Got::Granted(Err(trouble))) => {
            // The body must not run, so this claim is nobody's.
            if wanted.give_back().await.is_ok() {
                unheard.disarm();
            }
            return Err(trouble.into());
        }
        Ok(got) => got,
        Err(trouble) => {
            if !doubt {
                unheard.disarm();
            }
            return Err(if trouble.is_full() { StoreError::Full } else { trouble.into() });
        }
    };
    if doubt && !matches!(got, Got::Granted(_)) {
        drop(unheard);
        // What is given back must not be what an heir has taken over.
        owner = Owner::random()?;
        claim = wire::claim(&name, owner, times, fingerprint, origin.as_ref());
    } else {
        unheard.disarm();
    }
    let former = match got {
        Got::Granted(_) => None,
        Got::Abandoned(former) => Some(former),
        Got::InFlight(fingerprint) => return Ok(Begin::InFlight(fingerprint)),
        Got::Record(sealed) => return Ok(Begin::Completed(wire::unseal(key, &name, &sealed)?)),
    };
    let abandoned = former.is_some();
    let claim = RedisClaim {
        inner: Arc::clone(inner),
        key: *key,
        name,
        owner,
        fingerprint: *fingerprint,
        origin,
        claim,
        former,
        ttl,
        maybe_released: Arc::default(),
    };
    Ok(if abandoned { Begin::Abandoned(claim) } else { Begin::Claimed(claim) })
}

impl Wanted<'_> {
    async fn get(&mut self) -> Result<Got, Trouble> {
        let mut set = cmd("SET");
        set.arg(&self.name.0).arg(&**self.claim).arg("NX").arg("GET").arg("PX").arg(&self.lives);
        for _ in 0..LOOKS {
            let heard = self.inner.link.send(&set, self.deadline).await;
            let Heard { answer, repeated, number } =
                heard.inspect_err(|trouble| self.doubt |= trouble.is_uncertain())?;
            self.doubt |= repeated;
            match answer {
                Value::Nil => {
                    return Ok(Got::Granted(self.inner.copied(Copies::AsDeclared, number, self.deadline).await));
                }
                Value::BulkString(value) if value == **self.claim => return self.again().await,
                Value::BulkString(value) => match wire::read(self.name, &value.into()) {
                    Some(Written::Record(sealed)) => return Ok(Got::Record(sealed)),
                    Some(Written::Claim(held)) if held.fingerprint == *self.fingerprint => {}
                    Some(Written::Claim(held)) => return Ok(Got::InFlight(held.fingerprint)),
                    None => return Err(Trouble::unreadable(self.name)),
                },
                // It takes no writes: it is full, a replica, or has too few of them. What stands there is answered all the same.
                Value::ServerError(error) => {
                    return match self.inner.look(self.name, self.deadline).await {
                        Ok(Some(looked)) if looked.value != *self.claim => Ok(self.judge(looked)),
                        Err(trouble @ Trouble::Unreadable { .. }) => Err(trouble),
                        _ => Err(Trouble::Refused { error, repeated }),
                    };
                }
                _ => {
                    self.doubt = true;
                    return Err(Trouble::Reply);
                }
            }
            match self.inner.look(self.name, self.deadline).await? {
                Some(looked) if looked.value == *self.claim => return self.again().await,
                Some(looked) => return Ok(self.judge(looked)),
                // It has ended since, so the key is free.
                None => {}
            }
        }
        // Each time somebody else was faster.
        Ok(Got::InFlight(*self.fingerprint))
    }

    /// The claim stands, written by a command whose answer was lost.
    async fn again(&mut self) -> Result<Got, Trouble> {
        self.doubt = true;
        let arguments = [&self.claim[..], self.claim, self.lives.as_bytes()];
        let renew = &self.inner.scripts.renew;
        let stepped = self.inner.step(renew, self.name, &arguments, Copies::AsDeclared, self.deadline).await?;
        match stepped.said {
            Said::Done => Ok(Got::Granted(stepped.copied)),
            _ => Err(Trouble::Unheard),
        }
    }

    fn judge(&self, looked: Looked) -> Got {
        match &looked.written {
            Written::Record(sealed) => Got::Record(sealed.clone()),
            Written::Claim(held) if held.fingerprint == *self.fingerprint && looked.is_over(held.ends) => {
                Got::Abandoned(Former { ends: held.ends, claim: looked.value })
            }
            Written::Claim(held) => Got::InFlight(held.fingerprint),
        }
    }

    async fn give_back(&self) -> Result<Heard<Value>, Trouble> {
        let (link, channel) = (&self.inner.link, self.name.channel());
        let arguments = [&self.claim[..], channel.as_bytes()];
        run(link, &self.inner.scripts.release, self.name, &arguments, link.deadline()).await
    }
}
