//! Waiting for replicas, on its own connection: `WAIT` stops the connection that it is sent on.
//!
//! `WAIT` counts the replicas that have the last write of the connection that it is sent on, and all writes before it. So each step that
//! waits is first confirmed on this connection: a script looks that the server has its value, and writes something that changes
//! nothing. A server that took over from the one that did the step, and does not have the value, confirms nothing. One `WAIT`
//! serves all steps that have come since the last one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use redis::{Pipeline, Value};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::connection::Connection;
use crate::errors::Error;
use crate::scripts::{Script, ScriptReply};
use crate::turns::Turns;
use crate::value::Name;

pub(crate) struct Replicas(Arc<Shared>);

struct Shared {
    connection: Connection,
    confirm: Script,
    want: u32,
    within: Duration,
    /// Whether the server may have a value in a slot that is not yet its own: it must be asked expressly.
    in_cluster: bool,
    steps: Mutex<Vec<ReplicationStep>>,
    /// Each step has a task, of which the next one confirms all steps that there are.
    confirming: Turns,
}

/// A step that waits for replicas.
struct ReplicationStep {
    name: String,
    /// What its value begins with.
    start: Bytes,
    result: oneshot::Sender<Result<(), Error>>,
}

impl Replicas {
    pub(crate) fn new(connection: Connection, want: u32, within: Duration, in_cluster: bool) -> Self {
        let confirm = Script::new(include_str!("scripts/confirm.lua"));
        let (steps, confirming) = (Mutex::default(), Turns::new());
        Self(Arc::new(Shared { connection, confirm, want, within, in_cluster, steps, confirming }))
    }

    /// The next step makes a new connection.
    pub(crate) fn give_up(&self) {
        self.0.connection.give_up();
    }

    /// Waits until enough replicas have the value under this name, which begins with `start`.
    pub(crate) async fn have(&self, name: &Name, start: Bytes) -> Result<(), Error> {
        let (result, confirmed) = oneshot::channel();
        let Shared { connection, within, .. } = &*self.0;
        self.0.lock().push(ReplicationStep { name: name.0.clone(), start, result });
        // Others may wait for it as well, so it must not end with this future. One task for all may be in a runtime that is not driven.
        tokio::spawn(Arc::clone(&self.0).confirm_all());
        // The `WAIT` before this one may take as long.
        let limit = connection.timeout().saturating_add(*within);
        match timeout(limit, confirmed).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Unconfirmed),
            Err(_) => Err(Error::NoReply(limit)),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<ReplicationStep>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn confirm_all(self: Arc<Self>) {
        // The one before may be sent twice, each time for as long as a step may take.
        let _turn = self.confirming.take(self.connection.timeout() * 2).await;
        let mut steps = std::mem::take(&mut *self.lock());
        // Some have been dropped meanwhile.
        steps.retain(|step| !step.result.is_closed());
        if !steps.is_empty() {
            self.wait_for(steps).await;
        }
    }

    async fn wait_for(&self, steps: Vec<ReplicationStep>) {
        let mut sent = self.send(&steps, Script::by_hash).await;
        if sent.as_ref().is_ok_and(|(confirmed, _)| confirmed.iter().any(Script::is_unknown)) {
            sent = self.send(&steps, Script::in_full).await;
        }
        match sent {
            Ok((confirmed, waited)) => {
                let replicas = self.count(waited);
                for (step, value) in steps.into_iter().zip(confirmed) {
                    let confirmed = match value {
                        Value::ServerError(error) => Err(Error::Refused { error, repeated: true }),
                        value => match ScriptReply::read(value) {
                            Ok(ScriptReply::Done) => replicas.clone(),
                            // Its claim or its record is gone, or the server is another one.
                            _ => Err(Error::Unconfirmed),
                        },
                    };
                    let _ = step.result.send(confirmed);
                }
            }
            Err(error) => {
                for step in steps {
                    let _ = step.result.send(Err(error.clone()));
                }
            }
        }
    }

    /// Returns the reply to each step, and the one to `WAIT`.
    async fn send(
        &self,
        steps: &[ReplicationStep],
        call: fn(&Script, Option<&str>, &[&[u8]]) -> redis::Cmd,
    ) -> Result<(Vec<Value>, Option<Value>), Error> {
        let mut commands = Pipeline::with_capacity(2 * steps.len() + 1);
        for step in steps {
            if self.in_cluster {
                commands.cmd("ASKING");
            }
            commands.add_command(call(&self.confirm, Some(&step.name), &[&step.start]));
        }
        let within = u64::try_from(self.within.as_millis()).unwrap_or(u64::MAX);
        commands.cmd("WAIT").arg(self.want).arg(within);
        let mut replies = self.connection.send(&commands, self.connection.deadline()).await?.value;
        let waited = replies.pop();
        let each = if self.in_cluster { 2 } else { 1 };
        // In a cluster the first of two is that to `ASKING`.
        Ok((replies.into_iter().skip(each - 1).step_by(each).collect(), waited))
    }

    /// Judges the reply to `WAIT`.
    fn count(&self, reply: Option<Value>) -> Result<(), Error> {
        match reply {
            Some(Value::Int(have)) if have >= i64::from(self.want) => Ok(()),
            Some(Value::Int(have)) => Err(Error::NotReplicated { have, want: self.want, within: self.within }),
            Some(Value::ServerError(error)) => Err(Error::Refused { error, repeated: true }),
            _ => Err(Error::UnknownReply),
        }
    }
}
