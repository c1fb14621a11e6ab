//! What holds for any input, one function for each fuzz target. A panic says what does not hold.

mod attribute;
mod fingerprint;
mod headers;
mod input;
mod key;
mod record;
mod requests;

/// A macro crate exports nothing but its macros, so its sources are compiled here once more.
#[path = "../../../idem-macros/src"]
mod macros {
    pub(crate) mod args;
    pub(crate) mod errors;
    pub(crate) mod expand;
    pub(crate) mod item;
    pub(crate) mod policy;
    pub(crate) mod scope;
    pub(crate) mod sum;
    pub(crate) mod value;
}
// Where they look for each other.
use macros::{args, errors, expand, item, policy, scope, sum, value};

pub use attribute::attribute_arguments;
pub use headers::header_filter;
pub use key::key_parser;
pub use record::record_decoder;

/// Two different lists of parts have different fingerprints, and so have two different requests.
pub fn fingerprint_injectivity(input: &[u8]) {
    fingerprint::parts(input);
    requests::requests(input);
}
