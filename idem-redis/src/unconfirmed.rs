//! Releasing unconfirmed claims.

use std::sync::Arc;

use bytes::Bytes;
use idem_runtime::remote::ReleaseUnconfirmed;
use idem_runtime::{StorageKey, StoreError};

use crate::client::Client;
use crate::scripts::ScriptReply;
use crate::value::CLAIM;

/// Releases unconfirmed claims.
pub(crate) struct Releaser(pub(crate) Arc<Client>);

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
