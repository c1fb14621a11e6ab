//! The attribute's argument parser, and what becomes of the arguments.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use quote::quote;
use syn::{File, Item};

/// 100 years.
const LONGEST: u64 = 100 * 31_557_600;

/// The input is the text within `#[idempotent(..)]`. It expands to the function, a policy whose values are all within
/// their bounds, and a `compile_error!` for each mistake; the order of the options is nothing.
pub fn attribute_arguments(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // Deeper nesting is refused by the compiler itself before a macro sees it.
    if depth(text) > 64 {
        return;
    }
    let Ok(options) = text.parse::<TokenStream>() else { return };
    plain_function(options.clone());
    let expanded = expand(options.clone());
    let file: File = match syn::parse2(expanded.clone()) {
        Ok(file) => file,
        Err(error) => panic!("{error}: {expanded}"),
    };
    let (functions, mistakes): (Vec<_>, Vec<_>) = file.items.iter().partition(|item| matches!(item, Item::Fn(_)));
    assert_eq!(functions.len(), 1, "{expanded}");
    let is_error = |item: &&Item| matches!(item, Item::Macro(item) if item.mac.path.segments.last().is_some_and(|last| last.ident == "compile_error"));
    assert!(mistakes.iter().all(is_error), "{expanded}");
    match policy_block(expanded.clone()) {
        Some(block) => policy(block),
        None => assert!(text.contains("engine"), "no policy: {expanded}"),
    }
    assert_eq!(expand(options.clone()).to_string(), expanded.to_string(), "two expansions of one attribute");
    if mistakes.is_empty() {
        assert_eq!(expand(reversed(options)).to_string(), expanded.to_string(), "the order of the options counts");
    }
}

fn expand(options: TokenStream) -> TokenStream {
    let item = quote! {
        async fn order(State(orders): State<Orders>, Json(new): Json<NewOrder>) -> Result<Json<Order>, AppError> {
            Ok(Json(orders.create(new).await?))
        }
    };
    crate::expand::expand(options, item)
}

/// Of a plain function, too, nothing is left but itself and a `compile_error!` for each mistake.
fn plain_function(options: TokenStream) {
    let item = quote! {
        async fn ship(app: App, order: Order) -> Result<Parcel, ShipError> {
            app.send(order).await
        }
    };
    let expanded = crate::expand::expand_function(options, item);
    let file: File = match syn::parse2(expanded.clone()) {
        Ok(file) => file,
        Err(error) => panic!("{error}: {expanded}"),
    };
    assert_eq!(file.items.iter().filter(|item| matches!(item, Item::Fn(_))).count(), 1, "{expanded}");
}

fn depth(text: &str) -> usize {
    text.bytes().filter(|byte| b"([{<!-&*|".contains(byte)).count()
}

/// The options the other way round.
fn reversed(options: TokenStream) -> TokenStream {
    let mut all = vec![TokenStream::new()];
    let mut angles = 0_usize;
    for token in options {
        match &token {
            TokenTree::Punct(punct) if punct.as_char() == '<' => angles += 1,
            TokenTree::Punct(punct) if punct.as_char() == '>' => angles = angles.saturating_sub(1),
            TokenTree::Punct(punct) if punct.as_char() == ',' && angles == 0 => {
                all.push(TokenStream::new());
                continue;
            }
            _ => {}
        }
        all.last_mut().expect("one at least").extend([token]);
    }
    all.retain(|option| !option.is_empty());
    all.reverse();
    quote!(#(#all),*)
}

/// The block of the first `const { .. }`.
fn policy_block(tokens: TokenStream) -> Option<Group> {
    let mut after_name = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) if after_name && group.delimiter() == Delimiter::Parenthesis => return Some(group),
            TokenTree::Group(group) => {
                after_name = false;
                if let Some(found) = policy_block(group.stream()) {
                    return Some(found);
                }
            }
            TokenTree::Ident(ident) => after_name = ident == "declared_at",
            _ => after_name = false,
        }
    }
    None
}

/// The calls of the chain: `.name(argument)`.
fn policy(block: Group) {
    let tokens: Vec<_> = block.stream().into_iter().collect();
    let mut names = Vec::new();
    for call in tokens.windows(3) {
        let [TokenTree::Punct(dot), TokenTree::Ident(name), TokenTree::Group(arguments)] = call else { continue };
        if dot.as_char() != '.' || arguments.delimiter() != Delimiter::Parenthesis {
            continue;
        }
        let (name, text) = (name.to_string(), arguments.stream().to_string());
        let name = name.trim_start_matches("r#").to_owned();
        let number = || text.parse::<u64>().unwrap_or_else(|_| panic!("{name}({text})"));
        match name.as_str() {
            "ttl" => duration(&text),
            "in_flight" if text.contains("wait") => duration(text.split_once("wait").expect("it is there").1),
            "min_key" => assert!((1..=255).contains(&number()), "{name}({text})"),
            "mismatch" => assert!((400..=599).contains(&number()), "{name}({text})"),
            "replay_status" => assert!((200..=599).contains(&number()), "{name}({text})"),
            "max_response" => assert!(number() > 0, "{name}({text})"),
            "header" | "replay_header" => {
                let literal: syn::LitStr = syn::parse_str(&text).unwrap_or_else(|_| panic!("{name}({text})"));
                let value = http::HeaderName::from_lowercase(literal.value().as_bytes());
                assert!(value.is_ok(), "{name}({text})");
            }
            _ => {}
        }
        assert!(!names.contains(&name), "`{name}` twice");
        names.push(name);
    }
}

/// `::core::time::Duration::new(seconds, nanoseconds)`
fn duration(text: &str) {
    let numbers: Vec<u64> =
        text.split(|one: char| !one.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
    let [seconds, nanoseconds] = numbers[..] else { panic!("{text}") };
    assert!(seconds <= LONGEST && nanoseconds < 1_000_000_000 && seconds + nanoseconds > 0, "{text}");
}
