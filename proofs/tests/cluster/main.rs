//! Several processes over one store: killed, stopped, and fed by a queue that delivers again.

mod killed;
mod killed_at_each_statement;
mod redelivery;
mod side_by_side;
mod stopped;
mod transactions;
