//! Building blocks for stores outside this process: they reply late or not at all, and other processes change them.
//!
//! | what | for |
//! |---|---|
//! | [`OwnerToken`] | the random token that makes a claim one owner's |
//! | [`UnconfirmedClaims`] | claims that may have been granted although no acknowledgement arrived: they are released |
//! | [`Waiters`], [`Listener`] | the requests in this process that wait for claims to end, of which one asks the store |
//! | [`jitter`] | pauses that processes do not take at the same time |

mod jitter;
mod listener;
mod owner;
mod unconfirmed;
mod waiters;

pub use jitter::jitter;
pub use listener::Listener;
pub use owner::OwnerToken;
pub use unconfirmed::{InDoubt, ReleaseUnconfirmed, UnconfirmedClaims, UnconfirmedGuard};
pub use waiters::{Changes, Waiters};
