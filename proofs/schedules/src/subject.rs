//! The stores on which scenarios are played.

use idem_runtime::Store;

/// A store, sound or with a fault.
pub trait Subject: Store + Clone {
    /// A store with these limits.
    fn limited(entries: usize, bytes: usize) -> Self;
    /// One round of its janitor.
    fn janitor(&self);
    /// Claims, records, entries and bytes on the account.
    fn account(&self) -> [usize; 4];
}

macro_rules! subjects {
    ($($name:ident)*) => { $(
        impl Subject for crate::stores::$name::MemoryStore {
            fn limited(entries: usize, bytes: usize) -> Self {
                Self::builder().max_entries(entries).max_bytes(bytes).build()
            }

            fn janitor(&self) {
                self.round();
            }

            fn account(&self) -> [usize; 4] {
                let usage = self.usage();
                [usage.in_flight, usage.completed, usage.entries, usage.bytes]
            }
        }
    )* };
}

subjects! {
    sound check_then_act claim_goes_before_the_record_comes drop_releases counts_in_two_steps a_refusal_costs_an_entry
    end_wakes_no_one drop_wakes_no_one forget_wakes_no_one listens_too_late wakes_before_the_claim_is_free
    sweeps_without_a_second_look sweeps_the_living what_is_swept_counts what_is_released_counts
    notes_the_time_before_the_record_comes makes_room_without_a_second_look
}
