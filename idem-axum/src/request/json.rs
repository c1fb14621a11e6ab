//! JSON as the fingerprint sees it.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The largest integer that every JSON reader tells from its neighbours (RFC 7493, section 2.2): a reader that keeps
/// numbers in an `f64` takes 2^53 + 1 for 2^53.
const MAX_SAFE: u64 = (1 << 53) - 1;

/// Reads `bytes` as I-JSON (RFC 7493): no name twice, no integer from 2^53 on, no more digits than an `f64` keeps. `None` for anything else, which is to be
/// compared byte for byte, since two different such texts may canonicalise to one.
pub(crate) fn parse(bytes: &[u8]) -> Option<Value> {
    let json = serde_json::from_slice::<IJson>(bytes).ok()?;
    numbers(bytes).all(is_exact).then_some(json.0)
}

/// The numbers of a well-formed JSON text, as they are spelled.
fn numbers(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        while let Some((&first, after)) = rest.split_first() {
            match first {
                b'"' => rest = after_string(after),
                b'-' | b'0'..=b'9' => {
                    let spelled = |byte: &u8| matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E' | b'0'..=b'9');
                    let end = rest.iter().position(|byte| !spelled(byte)).unwrap_or(rest.len());
                    let (number, after) = rest.split_at(end);
                    rest = after;
                    return Some(number);
                }
                _ => rest = after,
            }
        }
        None
    })
}

/// What follows a string after its opening quote.
fn after_string(mut text: &[u8]) -> &[u8] {
    while let Some((&first, after)) = text.split_first() {
        match first {
            b'"' => return after,
            b'\\' => text = after.get(1..).unwrap_or_default(),
            _ => text = after,
        }
    }
    text
}

/// Whether no other spelling of another number gives the same `f64`: an integer, which the visitor has checked, or at most
/// 15 significant digits that are not too small to be told from zero.
fn is_exact(number: &[u8]) -> bool {
    if !number.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        return true;
    }
    let mantissa = number.split(|byte| matches!(byte, b'e' | b'E')).next().unwrap_or_default();
    let mut digits = mantissa.iter().filter(|byte| byte.is_ascii_digit()).skip_while(|&&digit| digit == b'0');
    let significant = digits.by_ref().zip(1..).filter(|&(&digit, _)| digit != b'0').map(|(_, place)| place).last();
    let significant: usize = significant.unwrap_or(0);
    let value = std::str::from_utf8(number).ok().and_then(|number| number.parse::<f64>().ok());
    significant == 0 || (significant <= 15 && value.is_some_and(|value| value.abs() >= f64::MIN_POSITIVE))
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
    fn a_number_that_every_reader_reads_alike_is_canonical() {
        for (text, canonical) in [
            ("0.10", "0.1"),
            ("10.00000000000000000000", "10"),
            ("0e-400", "0"),
            ("-0.0", "0"),
            ("123456789.012345", "123456789.012345"),
            ("\"3.141592653589793238462643383279\"", "\"3.141592653589793238462643383279\""),
        ] {
            assert_eq!(canonical_text(text).as_deref(), Some(canonical), "{text}");
        }
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
            "3.141592653589793238462643383279",
            "[10.0000000000000000009]",
            "{\"\\\"1\":1e-400}",
            "0.30000000000000004",
        ] {
            assert_eq!(canonical_text(text), None, "{text}");
        }
        assert_eq!(canonical_text("-9007199254740991").as_deref(), Some("-9007199254740991"));
    }
}
