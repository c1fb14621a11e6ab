//! JSON as the fingerprint sees it.

use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The largest integer that every JSON reader tells from its neighbours (RFC 7493, section 2.2): a reader that keeps
/// numbers in an `f64` takes 2^53 + 1 for 2^53.
const MAX_SAFE: f64 = 9_007_199_254_740_991.0;

/// The name by which `serde_json` hands over a number if another crate of the build enables its feature `arbitrary_precision`.
const NUMBER: &str = "$serde_json::private::Number";

/// Reads `bytes` as I-JSON (RFC 7493): no name twice, no integer from 2^53 on, no more digits than an `f64` keeps. `None` for
/// anything else, which is to be compared byte for byte, since two different such texts may canonicalise to one.
///
/// The value of a number is taken from its spelling and not from `serde_json`, whose features change how it reads one.
pub(crate) fn parse(bytes: &[u8]) -> Option<Value> {
    let mut spelled = numbers(bytes);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = IJson(&mut spelled).deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    Some(value)
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

/// Returns the value of a number, if no other number gives the same `f64`: an integer below 2^53, or a fraction of at most 15
/// significant digits that is not too small to be told from zero.
fn exact(number: &[u8]) -> Option<Number> {
    let value = std::str::from_utf8(number).ok()?.parse::<f64>().ok().filter(|value| value.abs() <= MAX_SAFE)?;
    let is_integer = !number.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E'));
    let mantissa = number.split(|byte| matches!(byte, b'e' | b'E')).next().unwrap_or_default();
    let digits = mantissa.iter().filter(|byte| byte.is_ascii_digit()).skip_while(|&&digit| digit == b'0');
    let significant = digits.zip(1..).filter(|&(&digit, _)| digit != b'0').map(|(_, place)| place).last();
    let is_exact = match significant {
        None => true,
        Some(_) if is_integer => true,
        Some(significant) => significant <= 15 && value.abs() >= f64::MIN_POSITIVE,
    };
    Number::from_f64(value).filter(|_| is_exact)
}

/// The canonical form, RFC 8785.
pub(crate) fn canonical(value: &Value) -> Option<Vec<u8>> {
    serde_json_canonicalizer::to_vec(value).ok()
}

/// A value to be read, with the spellings of the numbers from here on.
struct IJson<'a, N>(&'a mut N);

impl<'a, N: Iterator<Item = &'a [u8]>> IJson<'_, N> {
    fn number<E: de::Error>(self) -> Result<Value, E> {
        let number = self.0.next().and_then(exact);
        number.map(Value::Number).ok_or_else(|| E::custom("a number that readers disagree on"))
    }
}

impl<'de, 'a, N: Iterator<Item = &'a [u8]>> DeserializeSeed<'de> for IJson<'_, N> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, 'a, N: Iterator<Item = &'a [u8]>> Visitor<'de> for IJson<'_, N> {
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

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Value, E> {
        self.number()
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Value, E> {
        self.number()
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Value, E> {
        self.number()
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(IJson(self.0))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == NUMBER {
                // An object of the client with this name takes a number that is not its own, so there are too few, which is an error.
                map.next_value::<String>()?;
                return self.number();
            }
            if values.insert(name, map.next_value_seed(IJson(self.0))?).is_some() {
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
        assert_eq!(canonical_text("[true , false]").as_deref(), Some("[true,false]"));
    }

    #[test]
    fn a_number_that_every_reader_reads_alike_is_canonical() {
        for (text, canonical) in [
            ("0.10", "0.1"),
            ("10.00000000000000000000", "10"),
            ("0e-400", "0"),
            ("-0.0", "0"),
            ("[-0, 1E5, 2.5e-3, 1.5e-300]", "[0,100000,0.0025,1.5e-300]"),
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
            r#"{"$serde_json::private::Number":"1"}"#,
            r#"{"$serde_json::private::Number":1}"#,
            r#"[{"\u0024serde_json::private::Number":"1"},2]"#,
            r#"[{"a":1,"$serde_json::private::Number":"1"},2]"#,
        ] {
            assert_eq!(canonical_text(text), None, "{text}");
        }
        assert_eq!(canonical_text("-9007199254740991").as_deref(), Some("-9007199254740991"));
    }
}
