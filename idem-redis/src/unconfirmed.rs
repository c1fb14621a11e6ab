//! Releasing unconfirmed claims.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::join_all;
use idem_runtime::remote::{ReleaseUnconfirmed, UnconfirmedClaims};
use idem_runtime::{StorageKey, StoreError};

use crate::client::Client;
use crate::link::Address;
use crate::scripts::ScriptReply;
use crate::value::{CLAIM, Name};

/// The unconfirmed claims of each node by themselves: a node that does not reply holds up those of no other.
pub(crate) struct UnconfirmedByNode {
    client: Arc<Client>,
    /// By the node that had the key at first, whichever has it when it is released. So there are as many as there ever were nodes.
    by_node: Mutex<HashMap<Option<Address>, Arc<UnconfirmedClaims<Releaser>>>>,
}

impl UnconfirmedByNode {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        Self { client, by_node: Mutex::default() }
    }

    /// Returns those of the node that has the key.
    pub(crate) fn of(&self, name: &Name) -> Arc<UnconfirmedClaims<Releaser>> {
        let mut by_node = self.lock();
        let claims = by_node
            .entry(self.client.address(name))
            .or_insert_with(|| Arc::new(UnconfirmedClaims::new(Releaser(Arc::clone(&self.client)))));
        Arc::clone(claims)
    }

    /// Waits until each unconfirmed claim is released.
    pub(crate) async fn drained(&self) {
        let all: Vec<_> = self.lock().values().cloned().collect();
        join_all(all.iter().map(|claims| claims.drained())).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Option<Address>, Arc<UnconfirmedClaims<Releaser>>>> {
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Releases unconfirmed claims.
pub(crate) struct Releaser(Arc<Client>);

pub(crate) struct UnconfirmedClaim {
    pub(crate) key: StorageKey,
    pub(crate) value: Bytes,
}

impl ReleaseUnconfirmed for Releaser {
    type Claim = UnconfirmedClaim;

    // All of them share one connection.
    const MAX_CONCURRENT_TRIES: usize = usize::MAX;

    async fn release(&self, claim: &UnconfirmedClaim) -> Result<bool, StoreError> {
        let Self(client) = self;
        let name = client.name(&claim.key);
        let (script, channel) = (&client.scripts.release, name.channel());
        let arguments = [&claim.value[..], channel.as_bytes()];
        let reply = match client.run(script, &name, &arguments, client.deadline()).await.map_err(StoreError::from) {
            // A value of another type, which is no claim.
            Err(StoreError::Unreadable(_)) => return Ok(true),
            reply => reply?,
        };
        Ok(match ScriptReply::read(reply.value)? {
            ScriptReply::Absent => false,
            // It may still arrive once this other claim has ended.
            ScriptReply::Found(value) => !value.starts_with(CLAIM),
            ScriptReply::Done | ScriptReply::NotExpired => true,
        })
    }
}
