//! The names of `idem_runtime::sync`, under the scheduler.

use std::sync::atomic::Ordering;

pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// A point at which any other thread may go first.
#[derive(Default)]
struct Turn(shuttle::sync::atomic::AtomicBool);

impl Turn {
    fn step(&self) {
        self.0.load(Ordering::SeqCst);
    }
}

macro_rules! atomic {
    ($name:ident, $number:ty) => {
        /// A counter, each operation of which is one step: a compare-and-set that fails is tried again, so that all of
        /// `fetch_update` happens at once.
        pub(crate) struct $name(Turn, std::sync::atomic::$name);

        #[allow(dead_code, reason = "the faults use more than the store")]
        impl $name {
            pub(crate) fn new(value: $number) -> Self {
                Self(Turn::default(), std::sync::atomic::$name::new(value))
            }

            pub(crate) fn load(&self, order: Ordering) -> $number {
                self.0.step();
                self.1.load(order)
            }

            pub(crate) fn store(&self, value: $number, order: Ordering) {
                self.0.step();
                self.1.store(value, order);
            }

            pub(crate) fn fetch_sub(&self, value: $number, order: Ordering) -> $number {
                self.0.step();
                self.1.fetch_sub(value, order)
            }

            pub(crate) fn fetch_update(
                &self,
                set: Ordering,
                fetch: Ordering,
                update: impl FnMut($number) -> Option<$number>,
            ) -> Result<$number, $number> {
                self.0.step();
                self.1.fetch_update(set, fetch, update)
            }
        }
    };
}

atomic!(AtomicU64, u64);
atomic!(AtomicUsize, usize);

/// Threads that are not started: the tests make the janitor's rounds.
pub(crate) mod thread {
    pub(crate) use shuttle::thread::yield_now;

    pub(crate) struct Builder;

    impl Builder {
        pub(crate) fn new() -> Self {
            Self
        }

        pub(crate) fn name(self, _: String) -> Self {
            self
        }

        pub(crate) fn spawn(self, _: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
            Ok(())
        }
    }
}
