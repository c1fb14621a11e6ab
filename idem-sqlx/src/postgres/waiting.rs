//! Listening for the end of claims: a hint that makes waiters ask sooner.

use std::sync::{Arc, Weak};
use std::time::Duration;

use idem_runtime::StorageKey;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::{sleep, timeout};

use super::Shared;
use crate::waiting::{Listening, Waiters};

/// How long the connection stays open after the last waiter.
const LINGER: Duration = Duration::from_secs(30);
/// How long nobody listens after the connection has failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long to wait for the connection.
const CONNECT: Duration = Duration::from_secs(4);

impl Shared {
    /// Makes sure that a task listens.
    pub(super) fn listen(self: &Arc<Self>, waiters: &Arc<Waiters>) {
        if let Some(listening) = waiters.listen() {
            drop(tokio::spawn(listen(Arc::downgrade(self), listening)));
        }
    }
}

/// Ends when nobody waits, or the store is gone; the next one who waits starts it anew.
async fn listen(shared: Weak<Shared>, listening: Listening) {
    loop {
        let Some(store) = shared.upgrade() else { return };
        let listened = hear(&store, &listening.waiters).await;
        drop(store);
        match listened {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "nobody tells when a claim ends; waiters ask"),
        }
        sleep(PAUSE).await;
        if listening.waiters.nobody_waits() {
            return;
        }
    }
}

/// Passes on what is told, until nobody has waited for a while.
async fn hear(store: &Shared, waiters: &Waiters) -> Result<(), sqlx::Error> {
    // Never one of the connections for steps: those who wait must not be in the way of those who end a claim.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(CONNECT)
        .connect_lazy_with(store.options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(&store.channel).await?;
    loop {
        // Until now, or while the connection was lost, nothing was heard.
        waiters.wake_all();
        loop {
            match timeout(LINGER, listener.try_recv()).await {
                Ok(told) => match told? {
                    Some(told) => match key(told.payload()) {
                        Some(key) => waiters.wake(&key),
                        None => waiters.wake_all(),
                    },
                    None => break,
                },
                Err(_) if waiters.nobody_waits() => return Ok(()),
                Err(_) => {}
            }
        }
    }
}

/// The storage key that was told, in hexadecimal digits.
fn key(payload: &str) -> Option<StorageKey> {
    let digits = payload.as_bytes();
    let mut key = [0; 32];
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    for (byte, two) in key.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()?;
    }
    Some(StorageKey::from_bytes(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_a_key_in_hexadecimal_digits_and_nothing_else() {
        assert_eq!(key(&"ab".repeat(32)), Some(StorageKey::from_bytes([0xab; 32])));
        for other in ["", "ab", &"xy".repeat(32), &"ab".repeat(33), &"é".repeat(32)] {
            assert_eq!(key(other), None, "{other}");
        }
    }
}
