//! Listening for the end of claims: a hint that makes waiters ask sooner.

use std::sync::Arc;
use std::time::Duration;

use idem_runtime::StorageKey;
use idem_runtime::remote::Waiters;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::{sleep, timeout};

use super::Location;

/// How long the connection stays open after the last waiter.
const LINGER: Duration = Duration::from_secs(30);
/// The pause after the connection has failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long to wait for the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Listens until no request has waited for a while.
pub(super) async fn listen(location: Arc<Location>, waiters: Arc<Waiters>) {
    loop {
        match receive(&location, &waiters).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "could not listen for notifications of PostgreSQL; waiters poll"),
        }
        sleep(RETRY_PAUSE).await;
        if waiters.is_empty() {
            return;
        }
    }
}

/// Wakes waiters on notifications, until no request has waited for a while.
async fn receive(location: &Location, waiters: &Waiters) -> Result<(), sqlx::Error> {
    // Never a connection of the store's pool: waiters must not be in the way of owners who end their claims.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(CONNECT_TIMEOUT)
        // A standby refuses to listen, and after a failover the store's steps find the new primary.
        .connect_lazy_with(location.hosts.last());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(&location.channel).await?;
    loop {
        // Notifications before this moment, or while the connection was lost, were missed.
        waiters.ask_all();
        loop {
            match timeout(LINGER, listener.try_recv()).await {
                Ok(notification) => match notification? {
                    Some(notification) => match parse_key(notification.payload()) {
                        Some(key) => waiters.wake(&key),
                        None => waiters.ask_all(),
                    },
                    None => break,
                },
                Err(_) if waiters.is_empty() => return Ok(()),
                Err(_) => {}
            }
        }
    }
}

/// Reads a storage key in hexadecimal digits.
fn parse_key(payload: &str) -> Option<StorageKey> {
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
        assert_eq!(parse_key(&"ab".repeat(32)), Some(StorageKey::from_bytes([0xab; 32])));
        for other in ["", "ab", &"xy".repeat(32), &"ab".repeat(33), &"é".repeat(32)] {
            assert_eq!(parse_key(other), None, "{other}");
        }
    }
}
