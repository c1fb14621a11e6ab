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
    pub(crate) mod errors;
    pub(crate) mod expand;
    pub(crate) mod expression;
    pub(crate) mod function;
    pub(crate) mod handler;
    pub(crate) mod options;
    pub(crate) mod resolve;
    pub(crate) mod scope;
    pub(crate) mod spans;
    pub(crate) mod terms;
    pub(crate) mod value;
}
// Where they look for each other.
use macros::{errors, expand, expression, function, handler, options, resolve, scope, spans, terms, value};

pub use attribute::attribute_arguments;
pub use headers::header_filter;
pub use key::key_parser;
pub use record::record_decoder;

/// Two different lists of parts have different fingerprints, and so have two different requests.
pub fn fingerprint_injectivity(input: &[u8]) {
    fingerprint::parts(input);
    requests::requests(input);
}
