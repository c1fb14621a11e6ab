//! The task that listens for messages of a store.

use std::future::Future;
use std::sync::{Mutex, PoisonError};

use tokio::task::JoinHandle;

/// A task that runs while it is needed, and ends with its owner: it listens for messages of a store, and
/// [wakes](crate::remote::Waiters::wake) waiters.
///
/// ```
/// use std::sync::Arc;
/// use idem_runtime::remote::{Listener, Waiters};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let (listener, waiters) = (Listener::default(), Arc::new(Waiters::default()));
/// listener.ensure_running(|| async move {
///     while !waiters.is_empty() {
///         // .. wait for the next message, and wake those whom it concerns ..
///         # unreachable!("no one waits")
///     }
/// });
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Listener(Mutex<Option<JoinHandle<()>>>);

impl Listener {
    /// Starts the task that `listen` describes, unless one is running.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn ensure_running<F>(&self, listen: impl FnOnce() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut task = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(listen()));
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(task) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn one_task_runs_and_ends_with_its_owner() {
        let listener = Listener::default();
        let (running, ended) = oneshot::channel::<()>();
        listener.ensure_running(|| async move {
            pending::<()>().await;
            drop(running);
        });
        listener.ensure_running::<std::future::Ready<()>>(|| panic!("a task is running"));
        drop(listener);
        ended.await.unwrap_err();
    }

    #[tokio::test]
    async fn a_task_that_has_ended_is_started_again() {
        let listener = Listener::default();
        for _ in 0..2 {
            let (runs, ran) = oneshot::channel();
            while listener.0.lock().unwrap().as_ref().is_some_and(|task| !task.is_finished()) {
                tokio::task::yield_now().await;
            }
            listener.ensure_running(|| async { runs.send(()).unwrap() });
            ran.await.unwrap();
        }
    }
}
