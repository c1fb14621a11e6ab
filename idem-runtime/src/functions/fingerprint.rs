//! The fingerprint of a value: a hash of its canonical JSON.

use serde::{Serialize, ser};
use serde_json::Value;

use crate::fingerprint::Fingerprint;

/// The largest integer that the numbers of RFC 8785, which are `f64`, tell from its neighbours.
const MAX_SAFE: u64 = (1 << 53) - 1;

pub(super) fn fingerprint(value: &impl Serialize) -> Result<Fingerprint, serde_json::Error> {
    // Refuses a name that occurs twice, of which a `Value` keeps the last.
    serde_json_canonicalizer::to_vec(value)?;
    let mut value = serde_json::to_value(value)?;
    spell_large_integers(&mut value)?;
    let mut fingerprint = Fingerprint::builder();
    fingerprint.part(b'j', &serde_json_canonicalizer::to_vec(&value)?);
    Ok(fingerprint.finish())
}

/// Replaces integers beyond [`MAX_SAFE`] by strings.
///
/// # Errors
/// An integer of more than 64 bits, which is a number only if another crate of the build enables `arbitrary_precision` of
/// `serde_json`. A fingerprint must not depend on that.
fn spell_large_integers(value: &mut Value) -> Result<(), serde_json::Error> {
    match value {
        Value::Number(number) => {
            let magnitude = number.as_u64().or(number.as_i64().map(i64::unsigned_abs));
            if magnitude.is_none() && !number.is_f64() {
                return Err(ser::Error::custom("an integer of more than 64 bits"));
            }
            if magnitude.is_some_and(|magnitude| magnitude > MAX_SAFE) {
                *value = Value::String(number.to_string());
            }
            Ok(())
        }
        Value::Array(values) => values.iter_mut().try_for_each(spell_large_integers),
        Value::Object(fields) => fields.values_mut().try_for_each(spell_large_integers),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}
