use super::*;
use crate::errors::collect;
use syn::parse_quote;

type Read<T> = fn(&Expr, &TokenStream, &mut Errors) -> Option<T>;

/// What a sum becomes, without the paths; or the mistakes, without `compile_error!` around them.
fn read(sum: Expr, how: Read<TokenStream>) -> Result<String, Vec<String>> {
    let (read, mistakes) = collect(|errors| how(&sum, &quote!(p), errors));
    if mistakes.is_empty() {
        return Ok(read.unwrap_or_default().to_string().replace("p :: ", "").replace(' ', ""));
    }
    let messages = mistakes.into_iter().filter_map(|token| match token {
        proc_macro2::TokenTree::Group(group) => syn::parse2::<syn::LitStr>(group.stream()).ok(),
        _ => None,
    });
    Err(messages.map(|message| message.value()).collect())
}

fn read_replay(sum: &Expr, private: &TokenStream, errors: &mut Errors) -> Option<TokenStream> {
    replay(sum, private, errors).map(|replay| replay.tokens)
}

#[track_caller]
fn refused(sum: Expr, how: Read<TokenStream>, parts: &[&str]) {
    let messages = read(sum, how).err().unwrap_or_default();
    assert_eq!(messages.len(), parts.len(), "{messages:?}");
    for (message, part) in messages.iter().zip(parts) {
        assert!(message.contains(part), "{message:?} does not contain {part:?}");
    }
}

#[test]
fn the_order_of_terms_never_changes_the_fingerprint() {
    let expected = Ok("&[Part::Method,Part::Body,Part::JsonPointers(&[\"\",\"/a\",\"/b/0\"]),Part::Header(\"a\"),\
        Part::Header(\"b\")]"
        .to_owned());
    let one = parse_quote!(header("B") + json("/b/0", "/a", "") + body + method + header("a"));
    let other = parse_quote!(method + json("/a") + header("A") + header("b") + json("", "/b/0") + body);
    assert_eq!(read(one, fingerprint), expected);
    assert_eq!(read(other, fingerprint), expected);
}

#[test]
fn fingerprints_that_are_none() {
    refused(parse_quote!(bod + path), fingerprint, &["unknown term `bod`; did you mean `body`?"]);
    refused(parse_quote!(cookies), fingerprint, &["`json`, `header(\"Name\")` and `none`"]);
    refused(parse_quote!(body + cookies), fingerprint, &["`json` and `header(\"Name\")`"]);
    refused(parse_quote!(headr), fingerprint, &["did you mean `header(\"Name\")`?"]);
    refused(parse_quote!(path + path), fingerprint, &["already"]);
    refused(parse_quote!(header("A") + header("a")), fingerprint, &["already"]);
    refused(parse_quote!(json("/a", "/a")), fingerprint, &["already"]);
    refused(parse_quote!(json("/a") + json("/a")), fingerprint, &["already"]);
    refused(parse_quote!(body - path), fingerprint, &["cannot use `-`"]);
    refused(parse_quote!(-body), fingerprint, &["cannot use `-`"]);
    refused(parse_quote!(body | path), fingerprint, &["joined by `+`"]);
    refused(parse_quote!("body" + path), fingerprint, &["remove the quotes: write `body`"]);
    refused(parse_quote!(body()), fingerprint, &["`body` takes no arguments: write `body`"]);
    refused(parse_quote!(header + header() + header("A", "B")), fingerprint, &["takes one name"; 3]);
    refused(parse_quote!(json()), fingerprint, &["write `json` for the whole document"]);
    refused(parse_quote!(json(a)), fingerprint, &["in quotes"]);
    refused(parse_quote!(json("a")), fingerprint, &["write `\"/a\"`"]);
    refused(parse_quote!(json("/a~2") + json("/~")), fingerprint, &["`~0`"; 2]);
    refused(parse_quote!((body + path) + 3), fingerprint, &["parentheses", "expected a term"]);
}

#[test]
fn what_is_recorded() {
    for (sum, chain) in [
        (parse_quote!(all), "Statuses::ALL"),
        (parse_quote!(404), "Statuses::of(404)"),
        (parse_quote!(all - 400 - 422), "Statuses::ALL.minus(Statuses::of(400)).minus(Statuses::of(422))"),
        (parse_quote!(success + client_error), "Statuses::SUCCESS.plus(Statuses::CLIENT_ERROR)"),
        (
            parse_quote!(all - server_error + 503 - redirect),
            "Statuses::ALL.minus(Statuses::SERVER_ERROR).plus(Statuses::of(503)).minus(Statuses::REDIRECT)",
        ),
    ] {
        assert_eq!(read(sum, record).as_deref(), Ok(chain));
    }
}

#[test]
fn what_cannot_be_recorded() {
    refused(parse_quote!(-400), record, &["the first term cannot be subtracted"]);
    refused(parse_quote!(-400 + all), record, &["the first term cannot be subtracted"]);
    refused(parse_quote!(al - 400), record, &["did you mean `all`?"]);
    refused(parse_quote!(all - 199 - 600 - sucess), record, &["from 200 to 599", "from 200 to 599", "`success`"]);
    refused(parse_quote!(all - "404"), record, &["404"]);
    refused(parse_quote!(success - success), record, &["nothing to record"]);
    refused(parse_quote!(all + 200), record, &["includes this already"]);
    refused(parse_quote!(success - 404), record, &["no earlier term includes this"]);
    refused(parse_quote!(all - (400 + 422)), record, &["parentheses"]);
}

#[test]
fn what_is_replayed() {
    let expected = Ok("Replay::STATUS.and(Replay::BODY)".to_owned());
    assert_eq!(read(parse_quote!(status + body), read_replay), expected);
    assert_eq!(read(parse_quote!(body + status), read_replay), expected);
    refused(parse_quote!(header), read_replay, &["did you mean `headers`?"]);
    refused(parse_quote!(body + body), read_replay, &["is sent already"]);
    refused(parse_quote!(status - body), read_replay, &["joined by `+`"]);
}

#[test]
fn only_headers_are_added_to_replays() {
    refused(parse_quote!(trailer("X-Retry", "no")), added_headers, &["expected a header: write for example"]);
    refused(parse_quote!(header), added_headers, &["expected a header: write for example"]);
}
