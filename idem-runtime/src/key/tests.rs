use super::*;

fn parsed(value: &[u8]) -> Result<String, InvalidKey> {
    Key::parse(value).map(|key| key.as_str().to_owned())
}

#[test]
fn the_quoted_and_the_bare_form_are_the_same_key() {
    for value in ["abc", "\"abc\"", " \t abc \t ", "\"abc\";v=1", "\"abc\"; a; b=\"x,\\\"y\";c=?1;d=:YWJj:;*e=-1.5"] {
        assert_eq!(parsed(value.as_bytes()).as_deref(), Ok("abc"), "{value}");
    }
    assert_eq!(parsed(br#""a\"b\\c""#).as_deref(), Ok(r#"a"b\c"#));
}

#[test]
fn a_malformed_key_says_what_is_wrong() {
    let cases: &[(&[u8], InvalidKey)] = &[
        (b"", InvalidKey::Empty),
        (b"   ", InvalidKey::Empty),
        (b"\"\"", InvalidKey::Empty),
        (b"a b", InvalidKey::Character),
        (b"a\tb", InvalidKey::Character),
        (b"\"a b\"", InvalidKey::Character),
        (b"\"abc", InvalidKey::Unterminated),
        (b"\"abc\\\"", InvalidKey::Unterminated),
        (b"\"", InvalidKey::Unterminated),
        (b"\"a\\x\"", InvalidKey::Syntax),
        (b"\"a\\", InvalidKey::Syntax),
        (b"abc\"", InvalidKey::Syntax),
        (b"abc;v=1", InvalidKey::Syntax),
        (b"\"abc\" ;v=1", InvalidKey::Syntax),
        (b"\"abc\"x", InvalidKey::Syntax),
        (b"\"abc\";", InvalidKey::Syntax),
        (b"\"abc\";V=1", InvalidKey::Syntax),
        (b"\"abc\";v=", InvalidKey::Syntax),
        (b"\"abc\";v=\"x", InvalidKey::Unterminated),
        (b"\"abc\";v=\"\\x\"", InvalidKey::Syntax),
        (b"\"abc\";v=\"\\\x80\"", InvalidKey::Syntax),
        (b"\"abc\";v=\"x\\", InvalidKey::Syntax),
        (b"\"a\", \"b\"", InvalidKey::List),
        (b"\"a\";v=1, \"b\"", InvalidKey::List),
        (b"a,a", InvalidKey::List),
        (b"a\x80", InvalidKey::Character),
        (b"\xc0\xaf", InvalidKey::Character),
        ("\u{e9}".as_bytes(), InvalidKey::Character),
        ("\u{202e}abc".as_bytes(), InvalidKey::Character),
        (b"a\x00b", InvalidKey::Character),
        (b"a\x7f", InvalidKey::Character),
    ];
    for (value, wanted) in cases {
        assert_eq!(parsed(value), Err(*wanted), "{}", String::from_utf8_lossy(value));
    }
}

#[test]
fn odd_but_visible_characters_are_a_key() {
    for value in
        ["*", "a|b", "a:b", "{a}{b}", "../../etc", "${jndi:ldap://x}", "%0d%0aSet-Cookie:x", ":YWJj:", "?1", "1"]
    {
        assert_eq!(parsed(value.as_bytes()).as_deref(), Ok(value));
    }
}

#[test]
fn the_length_is_counted_after_unquoting() {
    let longest = "k".repeat(MAX_KEY);
    let too_long = "k".repeat(MAX_KEY + 1);
    assert!(parsed(longest.as_bytes()).is_ok());
    assert!(parsed(format!("\"{longest}\"").as_bytes()).is_ok());
    assert_eq!(parsed(too_long.as_bytes()), Err(InvalidKey::TooLong));
    assert_eq!(parsed(format!("\"{too_long}\"").as_bytes()), Err(InvalidKey::TooLong));
    assert_eq!(parsed("k".repeat(500_000).as_bytes()), Err(InvalidKey::TooLong));
    let escaped = format!("\"{}\"", "\\\"".repeat(MAX_KEY));
    assert_eq!(parsed(escaped.as_bytes()).map(|key| key.len()), Ok(MAX_KEY));
}

#[test]
fn a_key_shows_only_a_hash_of_itself() {
    let key = Key::parse(b"very-secret").unwrap();
    let shown = format!("{key} {key:?} {:?}", StorageKey::new("", &Scope::GLOBAL, &key));
    assert!(!shown.contains("secret"), "{shown}");
    assert!(shown.starts_with("key#"), "{shown}");
}

#[test]
fn scope_and_key_cannot_be_shifted_into_each_other() {
    let key = |text: &str| Key::parse(text.as_bytes()).unwrap();
    let scope = |parts: &[&str]| parts.iter().fold(Scope::arguments(), |scope, part| scope.with(part.as_bytes()));
    let keys = [
        StorageKey::new("", &Scope::GLOBAL, &key("abc")),
        StorageKey::new("", &scope(&[]), &key("abc")),
        StorageKey::new("", &scope(&["a"]), &key("bc")),
        StorageKey::new("", &scope(&["ab"]), &key("c")),
        StorageKey::new("", &scope(&["a", "b"]), &key("c")),
        StorageKey::new("", &scope(&["a", ""]), &key("bc")),
        StorageKey::new("", &scope(&["", "a"]), &key("bc")),
        StorageKey::new("", &Scope::header("x").with(b"a"), &key("bc")),
    ];
    for (index, one) in keys.iter().enumerate() {
        assert!(keys.iter().skip(index + 1).all(|other| other != one), "{index}");
    }
}

#[test]
fn a_storage_key_is_stable_across_releases() {
    let key = Key::parse(b"abc").unwrap();
    let key = StorageKey::new("", &Scope::GLOBAL, &key);
    assert_eq!(hex::<32>(key.as_bytes()), "2df6aca3efef06cfcd863d6188dde12b59c28e3a4e3e34c68796538aef7bde51");
    assert_eq!(key.to_string(), "2df6aca3", "what logs have of it");
}

#[test]
fn a_child_key_is_a_uuid_that_depends_on_request_and_label() {
    let key = Key::parse(b"abc").unwrap();
    let mine = StorageKey::new("", &Scope::GLOBAL, &key);
    let theirs = StorageKey::new("", &Scope::arguments().with(b"b"), &key);
    let fingerprint = Fingerprint::from_bytes([7; 32]);
    let child = key.derive(Some((&mine, &fingerprint)), "charge");
    assert_eq!(child.as_str().len(), 36);
    assert_eq!(child, key.derive(Some((&mine, &fingerprint)), "charge"));
    assert_ne!(child, key.derive(Some((&mine, &fingerprint)), "refund"));
    assert_ne!(child, key.derive(Some((&theirs, &fingerprint)), "charge"));
    assert_ne!(child, key.derive(Some((&mine, &Fingerprint::from_bytes([8; 32]))), "charge"));
    assert_eq!(&child.as_str()[14..15], "8", "version");
}

#[test]
fn a_child_key_is_stable_across_releases() {
    let key = Key::parse(b"abc").unwrap();
    let children = ["charge", "refund", "ship"].map(|label| key.derive(None, label));
    let expected = [
        "db18acf8-344a-8314-bab5-bb0da5bdd732",
        "dc7a3ff6-3b31-8189-a214-472fea2a9711",
        "6449488e-3507-8135-9ac5-4e9ce5897796",
    ];
    assert_eq!(children.each_ref().map(Key::as_str), expected);
}

#[test]
fn any_text_but_none_is_a_key() {
    assert_eq!(Key::from_text("Überweisung 7").unwrap().as_str(), "Überweisung 7");
    assert_eq!(Key::from_text(""), None);
}
