//! Several processes of a service over one store, behind a proxy that goes round robin, while clients retry and hang up, and
//! processes are killed and stopped. What came of it is compared with what clients were told.

pub mod client;
pub mod effects;
pub mod findings;
pub mod processes;
pub mod redelivery;
pub mod round_robin;
pub mod run;
pub mod transactions;
