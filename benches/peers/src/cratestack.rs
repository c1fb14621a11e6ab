//! `cratestack-axum` over the plainest store there can be: a map behind a lock, which never forgets.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use axum::Router;
use axum::extract::Request;
use axum::http::header::AUTHORIZATION;
use cratestack_axum::idempotency::{IdempotencyLayer, IdempotencyRecord, IdempotencyStore, ReservationOutcome};
use cratestack_core::CratestackError;
use idem_benches::app::{self, Shop};
use uuid::Uuid;

pub fn router(shop: &Shop) -> Router {
    let layer = IdempotencyLayer::new(Arc::new(MapStore::default()), Duration::from_secs(24 * 60 * 60));
    app::bare(shop).layer(layer.with_principal_fingerprint(principal))
}

fn principal(request: &Request) -> String {
    let value = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    value.unwrap_or("anonymous").to_owned()
}

#[derive(Default)]
struct MapStore(Mutex<HashMap<(String, String), Slot>>);

struct Slot {
    token: Uuid,
    request_hash: [u8; 32],
    expires_at: SystemTime,
    record: Option<IdempotencyRecord>,
}

impl MapStore {
    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl IdempotencyStore for MapStore {
    async fn reserve_or_fetch(
        &self,
        principal: &str,
        key: &str,
        request_hash: [u8; 32],
        expires_at: SystemTime,
    ) -> Result<ReservationOutcome, CratestackError> {
        let id = (principal.to_owned(), key.to_owned());
        let mut slots = self.slots();
        if let Some(slot) = slots.get(&id).filter(|slot| slot.expires_at > SystemTime::now()) {
            return Ok(match &slot.record {
                _ if slot.request_hash != request_hash => ReservationOutcome::Conflict,
                Some(record) => ReservationOutcome::Replay(record.clone()),
                None => ReservationOutcome::InFlight,
            });
        }
        let token = Uuid::new_v4();
        slots.insert(id, Slot { token, request_hash, expires_at, record: None });
        Ok(ReservationOutcome::Reserved { token })
    }

    async fn complete(
        &self,
        principal: &str,
        key: &str,
        token: Uuid,
        status: u16,
        headers: &[u8],
        body: &[u8],
    ) -> Result<(), CratestackError> {
        let id = (principal.to_owned(), key.to_owned());
        if let Some(slot) = self.slots().get_mut(&id).filter(|slot| slot.token == token) {
            slot.record = Some(IdempotencyRecord {
                key: id.1,
                principal_fingerprint: id.0,
                request_hash: slot.request_hash,
                response_status: status,
                response_headers: headers.to_vec(),
                response_body: body.to_vec(),
                created_at: SystemTime::now(),
                expires_at: slot.expires_at,
            });
        }
        Ok(())
    }

    async fn release(&self, principal: &str, key: &str, token: Uuid) -> Result<(), CratestackError> {
        let id = (principal.to_owned(), key.to_owned());
        let mut slots = self.slots();
        if slots.get(&id).is_some_and(|slot| slot.token == token) {
            slots.remove(&id);
        }
        Ok(())
    }
}
