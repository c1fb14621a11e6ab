//! The key parser.

use idem_axum::fuzzing::{Key, Scope, StorageKey};

const WHITE: [u8; 5] = [b' ', b'\t', b'\n', b'\r', 0x0c];

/// Any header line is a key of 1 to 255 visible ASCII characters, or refused; and every way to write the key is the key.
pub fn key_parser(input: &[u8]) {
    let parsed = Key::parse(input);
    assert_eq!(Key::parse(&[b" \t", input, b"\t "].concat()), parsed, "white space around it counts");
    let value = trimmed(input);
    if let Some(text) = structured(value).or_else(|| bare(value)) {
        assert_eq!(parsed.as_ref().map(Key::as_str), Ok(&*text), "a key that is well-formed");
    }
    let Ok(key) = parsed else {
        let message = parsed.map_or_else(|error| error.to_string(), |_| String::new());
        assert!(!message.is_empty() && message.len() < 120, "{message}");
        return;
    };
    let text = key.as_str();
    assert!((1..=255).contains(&text.len()), "{} characters", text.len());
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
    if value[0] == b'"' {
        assert_eq!(unescaped(value).as_deref(), Some(text), "the text within the quotes");
    } else {
        assert_eq!(bare(value).as_deref(), Some(text), "the bare form is taken as it is");
    }
    let quoted = quote(text);
    for way in [quoted.clone(), format!("{quoted};v=1"), format!("{quoted}; a;b=\"x,\\\"\";c=?0;d=:YWJj:")] {
        assert_eq!(Key::parse(way.as_bytes()).as_ref(), Ok(&key), "{way}");
    }
    for list in [format!("{quoted}, {quoted}"), format!("{quoted},"), format!("{quoted} x"), quoted.repeat(2)] {
        assert!(Key::parse(list.as_bytes()).is_err(), "{list}");
    }
    let longer = Key::parse(quote(&format!("{text}x")).as_bytes());
    assert_eq!(longer.is_ok(), text.len() < 255);
    if let Ok(longer) = longer {
        assert_ne!(StorageKey::new("", &Scope::GLOBAL, &longer), StorageKey::new("", &Scope::GLOBAL, &key));
    }
    // Eight characters and more cannot be in eight hex digits by chance.
    if text.len() > 8 {
        assert!(!format!("{key} {key:?}").contains(text), "a key in a log");
    }
}

fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = value
        && WHITE.contains(first)
    {
        value = rest;
    }
    while let [rest @ .., last] = value
        && WHITE.contains(last)
    {
        value = rest;
    }
    value
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Visible ASCII but comma, quote and semicolon.
fn bare(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let plain = text.chars().all(|one| ('!'..='~').contains(&one) && !",\";".contains(one));
    (plain && (1..=255).contains(&text.len())).then(|| text.to_owned())
}

/// The text between the first quote and its end.
fn unescaped(value: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut characters = value.get(1..)?.iter().map(|&byte| char::from(byte));
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' => text.push(characters.next()?),
            character => text.push(character),
        }
    }
}

/// A structured-field string with parameters, RFC 8941, sections 3.1.2 and 3.3.3, to the letter, if a key can be made of it.
fn structured(value: &[u8]) -> Option<String> {
    let (text, mut rest) = string(value)?;
    while let Some(parameter) = rest.strip_prefix(b";") {
        let parameter = &parameter[parameter.iter().take_while(|&&byte| byte == b' ').count()..];
        if !matches!(parameter.first()?, b'a'..=b'z' | b'*') {
            return None;
        }
        rest = &parameter[parameter.iter().take_while(|&&byte| is_name(byte)).count()..];
        if let Some(item) = rest.strip_prefix(b"=") {
            rest = match item.first()? {
                b'"' => string(item)?.1,
                b'a'..=b'z' | b'A'..=b'Z' | b'*' => past(item, |byte| byte.is_ascii_alphanumeric()),
                b'0'..=b'9' => past(item, |byte| byte.is_ascii_digit()),
                b'?' => item.strip_prefix(b"?0").or_else(|| item.strip_prefix(b"?1"))?,
                _ => return None,
            };
        }
    }
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    (rest.is_empty() && visible && (1..=255).contains(&text.len())).then_some(text)
}

fn string(value: &[u8]) -> Option<(String, &[u8])> {
    let mut text = String::new();
    let mut rest = value.strip_prefix(b"\"")?;
    loop {
        rest = match rest {
            [b'"', rest @ ..] => return Some((text, rest)),
            [b'\\', escaped @ (b'"' | b'\\'), rest @ ..]
            | [escaped @ (b' '..=b'!' | b'#'..=b'[' | b']'..=b'~'), rest @ ..] => {
                text.push(char::from(*escaped));
                rest
            }
            _ => return None,
        }
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte)
}

fn past(item: &[u8], wanted: impl Fn(u8) -> bool) -> &[u8] {
    &item[item.iter().skip(1).take_while(|&&byte| wanted(byte)).count() + 1..]
}
