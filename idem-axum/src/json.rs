//! JSON as the fingerprint sees it.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The largest integer that every JSON reader tells from its neighbours (RFC 7493, section 2.2): a reader that keeps
/// numbers in an `f64` takes 2^53 + 1 for 2^53.
const MAX_SAFE: u64 = (1 << 53) - 1;

/// Reads `bytes` as I-JSON (RFC 7493): no name twice, no integer from 2^53 on. `None` for anything else, which is to be
/// compared byte for byte, since two different such texts may canonicalise to one.
pub(crate) fn parse(bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice::<IJson>(bytes).ok().map(|json| json.0)
}

/// The canonical form, RFC 8785.
pub(crate) fn canonical(value: &Value) -> Option<Vec<u8>> {
    serde_json_canonicalizer::to_vec(value).ok()
}

struct IJson(Value);

impl<'de> Deserialize<'de> for IJson {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IJsonVisitor).map(Self)
    }
}

struct IJsonVisitor;

impl<'de> Visitor<'de> for IJsonVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("I-JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        if value > MAX_SAFE { Err(E::custom("an integer that readers disagree on")) } else { Ok(value.into()) }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        if value.unsigned_abs() > MAX_SAFE {
            Err(E::custom("an integer that readers disagree on"))
        } else {
            Ok(value.into())
        }
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        // An integer that is spelled as a fraction or did not fit 64 bits arrives here as well.
        if value.abs() > 9_007_199_254_740_991.0 {
            return Err(E::custom("a number that readers disagree on"));
        }
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(IJson(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some((name, IJson(value))) = map.next_entry::<String, IJson>()? {
            if values.insert(name, value).is_some() {
                return Err(de::Error::custom("a name twice"));
            }
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical_text(text: &str) -> Option<String> {
        parse(text.as_bytes()).and_then(|value| canonical(&value)).and_then(|bytes| String::from_utf8(bytes).ok())
    }

    #[test]
    fn white_space_order_and_spelling_do_not_count() {
        let text = canonical_text("{ \"b\": [1.0, 2e0, null], \"a\": \"\\u0041\" }");
        assert_eq!(text.as_deref(), Some(r#"{"a":"A","b":[1,2,null]}"#));
        assert_eq!(text, canonical_text(r#"{"a":"A","b":[1,2,null]}"#));
    }

    #[test]
    fn what_readers_disagree_on_has_no_canonical_form() {
        for text in [
            "",
            "{",
            "nonsense",
            "{} {}",
            r#"{"a":1,"a":2}"#,
            r#"{"x":{"a":1,"\u0061":1}}"#,
            "9007199254740992",
            "9007199254740993",
            "9007199254740993.0",
            "-9007199254740993",
            "123456789012345678901234567890",
            "1e400",
            "1e17",
        ] {
            assert_eq!(canonical_text(text), None, "{text}");
        }
        assert_eq!(canonical_text("-9007199254740991").as_deref(), Some("-9007199254740991"));
    }
}
