use super::*;
use syn::parse_quote;

fn text<T>(result: syn::Result<T>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

fn ttl(written: &str) -> Result<Duration, String> {
    text(duration(&parse_quote!(#written), "ttl = \"24h\"", "zero"))
}

#[test]
fn durations() {
    for (written, seconds) in [
        ("90s", 90),
        ("24h", 86_400),
        ("1h 30m", 5400),
        ("7d", 604_800),
        (" 1m ", 60),
        ("36525 days", 3_155_760_000),
        ("2weeks", 1_209_600),
    ] {
        assert_eq!(ttl(written), Ok(Duration::from_secs(seconds)), "{written}");
    }
    assert_eq!(ttl("1500ms"), Ok(Duration::from_millis(1500)));
}

#[test]
fn durations_that_are_none() {
    for zero in ["0", "0s", "0h 0m"] {
        assert_eq!(ttl(zero), Err("zero".to_owned()), "{zero}");
    }
    for long in ["36526d", "99999999999999999999s", "18446744073709551615w"] {
        assert_eq!(ttl(long), Err(format!("`{long}` is too long: write at most 100 years, which is `\"36500d\"`")));
    }
    assert_eq!(ttl("24"), Err("`24` has no unit: write for example `\"24s\"` or `\"24h\"`".to_owned()));
    for nonsense in ["", " ", "h", "-1h", "1h30", "ever", "1,5h", "٣h"] {
        assert!(ttl(nonsense).is_err_and(|message| message.contains("is not a duration")), "{nonsense}");
    }
    for (written, part) in [
        ("1M", "unknown unit `M`: `M` could be minutes or months; write `s`, `m` (minutes), `h`, `d` or `w`"),
        ("2 months", "unknown unit `months`: a month has no fixed length"),
        ("1d 1y", "unknown unit `y`: a year has no fixed length"),
        ("24hh", "unknown unit `hh`;"),
        ("24H", "unknown unit `H`;"),
    ] {
        assert!(ttl(written).is_err_and(|message| message.contains(part)), "{written}: {:?}", ttl(written));
    }
    assert!(text(duration(&parse_quote!(24), "ttl = \"24h\"", "zero")).is_err_and(|it| it.contains("write `ttl = ")));
}

#[test]
fn header_values() {
    let value = |written: &str| text(header_value(&parse_quote!(#written), "header(\"A\", \"b\")"));
    assert_eq!(value("a b"), Ok("a b".to_owned()));
    for (written, part) in [(" a", "begin or end"), ("a ", "begin or end"), ("a\n", "'\\n' is not allowed")] {
        assert!(value(written).is_err_and(|message| message.contains(part)), "{written:?}");
    }
}

fn bytes(written: &str) -> Result<u64, String> {
    text(size(&parse_quote!(#written), "max_response = \"1MiB\""))
}

#[test]
fn sizes() {
    for (written, expected) in [
        ("512B", 512),
        ("64KiB", 65_536),
        ("64KB", 64_000),
        ("64kB", 64_000),
        ("1MiB", 1_048_576),
        ("10MB", 10_000_000),
        ("2GiB", 2_147_483_648),
        ("3 GB", 3_000_000_000),
        (" 1MiB ", 1_048_576),
    ] {
        assert_eq!(bytes(written), Ok(expected), "{written}");
    }
}

#[test]
fn sizes_that_are_none() {
    for (written, part) in [
        ("0", "larger than zero"),
        ("0B", "larger than zero"),
        ("00 MiB", "larger than zero"),
        ("512", "`512` has no unit: write for example `\"512B\"` or `\"512KiB\"`"),
        ("1mib", "unknown unit `mib`; did you mean `MiB`?"),
        ("1TiB", "unknown unit `TiB`; write one of `B`, `kB`"),
        ("20000000000GiB", "is too large"),
        ("99999999999999999999B", "is too large"),
        ("", "is not a size"),
        ("MiB", "is not a size"),
        ("-1MiB", "is not a size"),
        ("1.5MiB", "is not a size"),
        ("1 MiB 2 B", "is not a size"),
    ] {
        assert!(bytes(written).is_err_and(|message| message.contains(part)), "{written}: {:?}", bytes(written));
    }
}

#[test]
fn header_names_are_lowered() {
    let name = |written: &str| text(header_name(&parse_quote!(#written), "header = \"Name\""));
    assert_eq!(name("Idempotency-Key"), Ok("idempotency-key".to_owned()));
    assert_eq!(name("X_1!#$%&'*+.^`|~"), Ok("x_1!#$%&'*+.^`|~".to_owned()));
    assert!(name("").is_err_and(|message| message.contains("must not be empty")));
    for (written, bad) in [("a b", "' '"), ("a:", "':'"), ("schlüssel", "'ü'"), ("a\n", "'\\n'"), ("\"a\"", "'\"'")] {
        assert!(name(written).is_err_and(|message| message.starts_with(bad)), "{written}: {:?}", name(written));
    }
}

#[test]
fn numbers() {
    let status = |value: Expr| text(number(&value, REFUSAL, "a status", "mismatch = 422"));
    assert_eq!(status(parse_quote!(400)), Ok(400));
    assert_eq!(status(parse_quote!(599)), Ok(599));
    assert_eq!(status(parse_quote!(0x1a6)), Ok(422));
    for value in [
        parse_quote!(399),
        parse_quote!(600),
        parse_quote!(70000),
        parse_quote!(-422),
        parse_quote!(422u16),
        parse_quote!(4.22),
        parse_quote!("409 Conflict"),
        parse_quote!("200"),
    ] {
        let message = "expected a status from 400 to 599: write for example `mismatch = 422`";
        assert_eq!(status(value), Err(message.to_owned()));
    }
    assert!(status(parse_quote!(CONFLICT)).is_err_and(|message| message.contains("write `policy = POLICY`")));
    assert_eq!(status(parse_quote!("409")), Err("remove the quotes: write `409`".to_owned()));
}

#[test]
fn paths() {
    assert!(path(&parse_quote!(crate::render::<A>), "errors").is_ok());
    assert!(path(&parse_quote!(<A as B>::render), "errors").is_ok());
    let message = |value: Expr| text(path(&value, "errors").map(drop));
    assert_eq!(message(parse_quote!("a::b")), Err("remove the quotes: write `errors = a::b`".to_owned()));
    assert!(message(parse_quote!(|refusal| render(refusal))).is_err_and(|it| it.contains("fn(&Refusal) -> Response")));
    let policy = |value: Expr| text(path(&value, "policy").map(drop)).unwrap_err();
    assert_eq!(policy(parse_quote!("Policy::STRIPE")), "remove the quotes: write `policy = Policy::STRIPE`");
    // The name of a constant is not the name of an API.
    let message = "expected a path: write `policy = Policy::STRIPE`, or the name of a `const POLICY: Policy`";
    assert_eq!(policy(parse_quote!("stripe")), message);
}

#[test]
fn values_are_found_in_invisible_groups() {
    // What a `macro_rules!` parameter such as `$ttl:expr` becomes.
    let inner: proc_macro2::TokenStream = parse_quote!("24h");
    let group = proc_macro2::Group::new(proc_macro2::Delimiter::None, inner);
    assert!(duration(&parse_quote!(#group), "", "").is_ok());
}
