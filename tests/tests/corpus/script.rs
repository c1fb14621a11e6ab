//! Reads requests.txt, whose first lines say how it is written.

use std::time::Duration;

/// One input: its number in the list, what it is, and what to do.
pub struct Input {
    pub id: u16,
    pub group: String,
    pub name: String,
    pub steps: Vec<Step>,
}

pub enum Step {
    /// On a new connection.
    Send(Vec<u8>),
    More(Vec<u8>),
    HalfClose,
    Close,
    Reset,
    Advance(Duration),
    Expect(Expected),
    Totals {
        runs: usize,
        stored: usize,
    },
}

#[derive(Debug)]
pub enum Expected {
    Reply { statuses: Vec<u16>, replay: bool, code: Option<String> },
    Cut,
}

/// All inputs, in the order they are written in.
pub fn inputs() -> Vec<Input> {
    let mut inputs: Vec<Input> = Vec::new();
    let mut group = String::new();
    for line in include_str!("requests.txt").lines() {
        if line.is_empty() || line.starts_with('#') {
        } else if let Some(name) = line.strip_prefix('[') {
            group = name.trim_end_matches(']').to_owned();
        } else if let Some(step) = line.strip_prefix("    ") {
            inputs.last_mut().expect("an input comes first").steps.push(self::step(step));
        } else {
            let (id, name) = line.split_once(' ').expect("a number and a name");
            let id = id.parse().unwrap_or_else(|_| panic!("a number: {line}"));
            inputs.push(Input { id, group: group.clone(), name: name.to_owned(), steps: Vec::new() });
        }
    }
    for input in &inputs {
        assert!(matches!(input.steps.last(), Some(Step::Totals { .. })), "{} {}", input.id, input.name);
    }
    inputs
}

fn step(line: &str) -> Step {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "key" => Step::Send(order(&[b"idempotency-key: ", &*bytes(rest)].concat())),
        "head" => Step::Send(order(&bytes(rest))),
        "raw" => Step::Send(bytes(rest)),
        "ask" => Step::Send(ask(rest)),
        "more" => Step::More(bytes(rest)),
        "half" => Step::HalfClose,
        "close" => Step::Close,
        "reset" => Step::Reset,
        "advance" => Step::Advance(Duration::from_nanos(rest.parse().expect("nanoseconds"))),
        "=" => Step::Expect(expected(rest)),
        "runs" => {
            let (runs, stored) = rest.split_once(", stored ").expect("runs and stored");
            Step::Totals { runs: runs.parse().expect("a number"), stored: stored.parse().expect("a number") }
        }
        _ => panic!("unknown step: {line}"),
    }
}

fn order(lines: &[u8]) -> Vec<u8> {
    let end: &[u8] = if lines.is_empty() { b"\r\n" } else { b"\r\n\r\n" };
    [b"POST /order HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n", lines, end].concat()
}

fn ask(rest: &str) -> Vec<u8> {
    let (line, rest) = rest.split_once(" {").expect("headers in braces");
    let (headers, body) = rest.split_once('}').expect("headers in braces");
    let body = bytes(body.strip_prefix(' ').unwrap_or(body));
    let mut head = format!("{line} HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n", body.len());
    // A parameter of a value is no header.
    for header in headers.replace("; boundary", ";boundary").split("; ") {
        head.push_str(&format!("{header}\r\n"));
    }
    [format!("{head}\r\n").into_bytes(), body].concat()
}

fn expected(text: &str) -> Expected {
    if text == "cut" {
        return Expected::Cut;
    }
    let (statuses, word) = text.split_once(' ').unwrap_or((text, ""));
    let statuses = statuses.split('|').map(|status| status.parse().expect("a status")).collect();
    let code = (!word.is_empty() && word != "replay").then(|| format!("idempotency_{word}"));
    Expected::Reply { statuses, replay: word == "replay", code }
}

/// Takes the escapes out.
fn bytes(text: &str) -> Vec<u8> {
    let mut rest = text.as_bytes();
    let bytes = until_brace(&mut rest);
    assert!(rest.is_empty(), "a brace too many: {text}");
    bytes
}

/// Up to the `*` that ends a repeated part, if one is open, or to the end.
fn until_brace(rest: &mut &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some((&byte, after)) = rest.split_first() {
        let closes =
            byte == b'*' && after.iter().position(|&byte| byte == b'}').is_some_and(|end| digits(&after[..end]));
        if closes {
            return bytes;
        }
        *rest = after;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let (&escape, after) = rest.split_first().expect("an escape");
        *rest = after;
        match escape {
            b'r' => bytes.push(b'\r'),
            b'n' => bytes.push(b'\n'),
            b't' => bytes.push(b'\t'),
            b'0' => bytes.push(0),
            b'\\' => bytes.push(b'\\'),
            b'x' => {
                let (hex, after) = rest.split_at(2);
                let hex = std::str::from_utf8(hex).expect("ASCII");
                bytes.push(u8::from_str_radix(hex, 16).expect("two hex digits"));
                *rest = after;
            }
            b'{' => {
                let part = until_brace(rest);
                let end = rest.iter().position(|&byte| byte == b'}').expect("an end");
                let times = std::str::from_utf8(&rest[1..end]).expect("ASCII").parse().expect("how often");
                bytes.extend(part.repeat(times));
                *rest = &rest[end + 1..];
            }
            other => panic!("unknown escape: {}", char::from(other)),
        }
    }
    bytes
}

fn digits(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}
