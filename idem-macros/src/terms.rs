//! Reads the options whose value is a sum of terms: `fingerprint`, `record`, `replay` and `replay_with`.

use crate::{errors::Errors, spans::located_at, value};
use proc_macro2::{Ident, Literal, Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use std::{collections::BTreeSet, ops::RangeInclusive};
use syn::{BinOp, Expr, ExprArray, ExprTuple, Token, UnOp, punctuated::Punctuated, spanned::Spanned};

/// One term of a sum, with what it does.
struct Term<'a> {
    minus: Option<Token![-]>,
    value: &'a Expr,
}

/// Takes a sum apart, left to right.
fn terms<'a>(sum: &'a Expr, errors: &mut Errors) -> Option<Vec<Term<'a>>> {
    let mut terms = Vec::new();
    let mut rest = Some(value::bare(sum));
    if let Some(Expr::Array(ExprArray { elems, .. }) | Expr::Tuple(ExprTuple { elems, .. })) = rest
        && !elems.is_empty()
    {
        let joined: Vec<_> = elems.iter().map(|term| term.to_token_stream().to_string()).collect();
        errors.at(sum, format!("terms are joined by `+`: write `{}`", joined.join(" + ")));
        return None;
    }
    while let Some(last) = rest {
        let (minus, value, left) = match last {
            Expr::Binary(sum) => match &sum.op {
                BinOp::Add(_) => (None, &*sum.right, Some(&*sum.left)),
                BinOp::Sub(minus) => (Some(*minus), &*sum.right, Some(&*sum.left)),
                other => {
                    errors.at(other, "terms are joined by `+`: write `+` instead of this");
                    return None;
                }
            },
            Expr::Unary(negated) => match &negated.op {
                UnOp::Neg(minus) => (Some(*minus), &*negated.expr, None),
                _ => (None, last, None),
            },
            _ => (None, last, None),
        };
        terms.push(Term { minus, value: value::bare(value) });
        rest = left.map(value::bare);
    }
    terms.reverse();
    Some(terms)
}

/// A part of the fingerprint. Parts are sorted, so that the order of terms never changes the fingerprint.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FingerprintTerm {
    Method,
    Path,
    Query,
    Body,
    Json,
    JsonPointers(BTreeSet<String>),
    Header(String),
}

/// `none` is last: it is written alone.
const PARTS: &[&str] = &["method", "path", "query", "body", "json", "header(\"Name\")", "none"];

/// Whether a fingerprint is `none`: without any part.
pub(crate) fn is_none(sum: &Expr) -> bool {
    value::word(sum).is_some_and(|word| word == "none")
}

/// `method + json("/a", "/b/0") + header("Name")` as the slice of parts.
pub(crate) fn fingerprint(sum: &Expr, private: &TokenStream, errors: &mut Errors) -> Option<TokenStream> {
    let mut parts = BTreeSet::new();
    let mut pointers = BTreeSet::new();
    let terms = terms(sum, errors)?;
    let known = if terms.len() == 1 { PARTS } else { &PARTS[..PARTS.len() - 1] };
    for term in terms {
        if let Some(minus) = term.minus {
            errors.at(minus, "a fingerprint cannot use `-`: name the parts that count, joined by `+`");
            continue;
        }
        let Some(part) = errors.keep(part(term.value, known)) else { continue };
        let repeated = match part {
            // Pointers are one part however they are spread over terms.
            FingerprintTerm::JsonPointers(new) => {
                let repeated = pointer_among(term.value, &pointers);
                pointers.extend(new);
                repeated
            }
            part => (!parts.insert(part)).then_some(term.value),
        };
        if let Some(repeated) = repeated {
            errors.at(repeated, "this is part of the fingerprint already: remove it here");
        }
    }
    if !pointers.is_empty() {
        parts.insert(FingerprintTerm::JsonPointers(pointers));
    }
    let parts = parts.iter().map(|part| match part {
        FingerprintTerm::Method => quote!(#private::Part::Method),
        FingerprintTerm::Path => quote!(#private::Part::Path),
        FingerprintTerm::Query => quote!(#private::Part::Query),
        FingerprintTerm::Body => quote!(#private::Part::Body),
        FingerprintTerm::Json => quote!(#private::Part::Json),
        FingerprintTerm::JsonPointers(pointers) => quote!(#private::Part::JsonPointers(&[#(#pointers),*])),
        FingerprintTerm::Header(name) => quote!(#private::Part::Header(#name)),
    });
    Some(quote!(&[#(#parts),*]))
}

fn part(term: &Expr, known: &[&str]) -> syn::Result<FingerprintTerm> {
    let (name, arguments) = match value::call(term) {
        Some((name, arguments)) => (Some(name), Some(arguments)),
        None => (value::word(term), None),
    };
    let name = name.map(Ident::to_string).unwrap_or_default();
    match (name.as_str(), arguments) {
        ("method", None) => Ok(FingerprintTerm::Method),
        ("path", None) => Ok(FingerprintTerm::Path),
        ("query", None) => Ok(FingerprintTerm::Query),
        ("body", None) => Ok(FingerprintTerm::Body),
        ("json", None) => Ok(FingerprintTerm::Json),
        ("json", Some(arguments)) => pointers(term, arguments),
        ("header", arguments) => match arguments.and_then(value::argument) {
            Some(name) => Ok(FingerprintTerm::Header(value::header_name(name, "header(\"Name\")")?)),
            None => Err(syn::Error::new_spanned(term, "`header` takes one name: write `header(\"Name\")`")),
        },
        ("none", None) => {
            Err(syn::Error::new_spanned(term, "`none` is written alone: remove it, or write `fingerprint = none`"))
        }
        _ => Err(value::unknown(term, "term", known)),
    }
}

/// Returns the first pointer of a term that is among those of earlier terms.
fn pointer_among<'a>(term: &'a Expr, pointers: &BTreeSet<String>) -> Option<&'a Expr> {
    let (_, arguments) = value::call(term)?;
    arguments.iter().find(|argument| value::string(argument).is_some_and(|pointer| pointers.contains(&pointer.value())))
}

fn pointers(term: &Expr, arguments: &Punctuated<Expr, Token![,]>) -> syn::Result<FingerprintTerm> {
    if arguments.is_empty() {
        let message = "write `json` for the whole document, or name the parts that count: `json(\"/a\", \"/b/0\")`";
        return Err(syn::Error::new_spanned(term, message));
    }
    let mut pointers = BTreeSet::new();
    for argument in arguments {
        let Some(pointer) = value::string(argument).map(syn::LitStr::value) else {
            let message = "expected a JSON pointer in quotes: write for example `json(\"/a\", \"/b/0\")`";
            return Err(syn::Error::new_spanned(argument, message));
        };
        // RFC 6901, section 3
        if pointer.split('~').skip(1).any(|after| !after.starts_with(['0', '1'])) {
            let message = "in a JSON pointer write `~0` for `~`, and `~1` for a `/` inside a name";
            return Err(syn::Error::new_spanned(argument, message));
        }
        if !pointer.is_empty() && !pointer.starts_with('/') {
            // `$.order.id` is a JSONPath.
            let path = pointer.strip_prefix("$.").or(pointer.strip_prefix('.')).map(|path| path.replace('.', "/"));
            let pointer = path.unwrap_or(pointer);
            let message = format!("a JSON pointer must start with `/`: write `\"/{pointer}\"`");
            return Err(syn::Error::new_spanned(argument, message));
        }
        if !pointers.insert(pointer) {
            return Err(syn::Error::new_spanned(argument, "this is part of the fingerprint already: remove it here"));
        }
    }
    Ok(FingerprintTerm::JsonPointers(pointers))
}

pub(crate) const CLASSES: &[&str] = &["all", "success", "redirect", "client_error", "server_error"];

/// `all - 400 - 422` as a chain of `plus` and `minus`.
pub(crate) fn record(sum: &Expr, private: &TokenStream, errors: &mut Errors) -> Option<TokenStream> {
    let nothing = "this leaves nothing to record: name some statuses, such as `success`, or remove the attribute to leave the endpoint unprotected";
    set_of_statuses(sum, nothing, private, errors)
}

/// `nothing` is the message for an empty set.
fn set_of_statuses(sum: &Expr, nothing: &str, private: &TokenStream, errors: &mut Errors) -> Option<TokenStream> {
    let mut recorded = BTreeSet::new();
    let mut chain = TokenStream::new();
    let mut sound = true;
    for (position, Term { minus, value }) in terms(sum, errors)?.into_iter().enumerate() {
        let Some((statuses, tokens)) = errors.keep(statuses(value, private)) else {
            sound = false;
            continue;
        };
        if position == 0 && minus.is_some() {
            let message = "the first term cannot be subtracted: write for example `all - 400`";
            errors.at(quote!(#minus #value), message);
            return None;
        }
        let before = recorded.len();
        chain = match minus {
            None if chain.is_empty() => tokens,
            None => quote!(#chain.plus(#tokens)),
            Some(_) => quote!(#chain.minus(#tokens)),
        };
        for status in statuses {
            if minus.is_some() {
                recorded.remove(&status)
            } else {
                recorded.insert(status)
            };
        }
        if sound && recorded.len() == before {
            let why =
                if minus.is_some() { "no earlier term includes this" } else { "an earlier term includes this already" };
            errors.at(value, format!("{why}, so this term changes nothing: remove it"));
            sound = false;
        }
    }
    if sound && recorded.is_empty() {
        errors.at(sum, nothing);
        sound = false;
    }
    sound.then_some(chain)
}

/// The statuses of one term, and what they are called in generated code.
fn statuses(term: &Expr, private: &TokenStream) -> syn::Result<(RangeInclusive<u16>, TokenStream)> {
    if let Some(class) = class_of(term) {
        return Err(syn::Error::new_spanned(term, format!("this is no status: write `{class}`")));
    }
    let quoted = value::string(term).is_some_and(|class| CLASSES.contains(&class.value().as_str()));
    if matches!(term, Expr::Lit(_)) && !quoted {
        let status = value::number(term, value::RECORDED, "a status", "all - 404")?;
        let literal = Literal::u16_unsuffixed(status);
        return Ok((status..=status, quote!(#private::Statuses::of(#literal))));
    }
    let name = value::word(term).map(Ident::to_string).unwrap_or_default();
    let statuses = match name.as_str() {
        "all" => value::RECORDED,
        "success" => 200..=299,
        "redirect" => 300..=399,
        "client_error" => 400..=499,
        "server_error" => 500..=599,
        _ => return Err(value::unknown(term, "term", CLASSES)),
    };
    let class = constant(&name);
    Ok((statuses, quote!(#private::Statuses::#class)))
}

/// What is meant by `2xx`.
fn class_of(term: &Expr) -> Option<&'static str> {
    let term = term.to_token_stream().to_string().to_lowercase();
    let digit = term.strip_suffix("xx")?.parse::<usize>().ok()?;
    CLASSES.get(digit.checked_sub(1)?).copied().filter(|_| digit > 1)
}

pub(crate) const PIECES: &[&str] = &["status", "headers", "body"];

/// What `replay` sends.
pub(crate) struct ReplayTerms {
    pub(crate) tokens: TokenStream,
    pub(crate) has_body: bool,
}

/// `status + body` as a chain of `and`.
pub(crate) fn replay(sum: &Expr, private: &TokenStream, errors: &mut Errors) -> Option<ReplayTerms> {
    let mut given = BTreeSet::new();
    for Term { minus, value } in terms(sum, errors)? {
        let name = value::word(value).map(Ident::to_string).unwrap_or_default();
        match PIECES.iter().position(|piece| *piece == name) {
            _ if minus.is_some() => errors.at(minus, "write what is sent, joined by `+`"),
            None => errors.push(value::unknown(value, "term", PIECES)),
            Some(piece) if given.insert(piece) => {}
            Some(_) => errors.at(value, format!("`{name}` is sent already: remove it here")),
        }
    }
    let pieces = PIECES.iter().enumerate().filter(|(piece, _)| given.contains(piece));
    let mut constants = pieces.map(|(_, name)| constant(name));
    let first = constants.next()?;
    let tokens = quote!(#private::Replay::#first #(.and(#private::Replay::#constants))*);
    Some(ReplayTerms { tokens, has_body: given.contains(&2) })
}

/// `header("Name", "value") + header("Other", "value", server_error)` as the slice of headers that replays carry.
pub(crate) fn added_headers(sum: &Expr, private: &TokenStream, errors: &mut Errors) -> Option<TokenStream> {
    let mut headers = Vec::new();
    for Term { minus, value } in terms(sum, errors)? {
        if minus.is_some() {
            errors.at(minus, "write what is added, joined by `+`");
            continue;
        }
        headers.extend(added_header(value, private, errors));
    }
    // An item, which is evaluated as soon as the handler is checked; a `const` block only when it is mounted.
    Some(quote_spanned! {Span::mixed_site().located_at(sum.span())=> {
        const HEADERS: &[#private::AddedHeader] = &[#(#headers),*];
        HEADERS
    }})
}

fn added_header(term: &Expr, private: &TokenStream, errors: &mut Errors) -> Option<TokenStream> {
    const EXAMPLE: &str = "header(\"X-Should-Retry\", \"false\", server_error)";
    let arguments = match value::call(term) {
        Some((name, arguments)) if name == "header" => arguments,
        _ => {
            errors.at(term, format!("expected a header: write for example `{EXAMPLE}`"));
            return None;
        }
    };
    let mut arguments = arguments.iter();
    let (Some(name), Some(text), statuses, None) =
        (arguments.next(), arguments.next(), arguments.next(), arguments.next())
    else {
        let message =
            "`header` takes a name, a value and, optionally, the recorded statuses it is for: write for example";
        errors.at(term, format!("{message} `{EXAMPLE}`"));
        return None;
    };
    let place = name.span();
    let name = errors.keep(value::header_name(name, EXAMPLE));
    let text = errors.keep(value::header_value(text, EXAMPLE));
    let on = match statuses {
        Some(statuses) => {
            let nothing = "this leaves no status to add the header for: name some statuses, or remove the header";
            let statuses = set_of_statuses(statuses, nothing, private, errors)?;
            quote!(.on(#statuses))
        }
        None => TokenStream::new(),
    };
    let (name, text) = (name?, text?);
    // A name that replays cannot have is reported at it.
    let header = located_at(place, quote!(#private::AddedHeader::new(#name, #text)));
    Some(quote!(#header #on))
}

/// The constant for a term in generated code.
fn constant(term: &str) -> Ident {
    Ident::new(&term.to_uppercase(), Span::mixed_site())
}

#[cfg(test)]
mod tests;
