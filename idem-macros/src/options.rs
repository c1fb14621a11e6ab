//! The options as written: names and values with their spans, nothing interpreted yet.

use crate::{
    errors::{self, Errors},
    terms,
};
use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{
    Expr, Token,
    ext::IdentExt,
    parse::{ParseStream, Parser, discouraged::Speculative},
};

/// Every option once: its name, and how it is written. The order is that of the table in the rustdoc, and of the
/// calls in the generated chain.
macro_rules! options {
    ($($key:ident $name:literal $example:literal)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum OptionName { $($key),* }

        impl OptionName {
            pub(crate) const ALL: &[&str] = &[$($name),*];

            pub(crate) fn named(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$key),)* _ => None }
            }

            /// What to write for a handler, for messages.
            pub(crate) fn example(self) -> &'static str {
                match self { $(Self::$key => $example),* }
            }
        }
    };
}

options! {
    Policy "policy" "policy = POLICY"
    Engine "engine" "engine = app.idempotency"
    Header "header" "header = \"Idempotency-Key\""
    Key "key" "key = event.id"
    Required "required" "required"
    MinKey "min_key" "min_key = 8"
    Ttl "ttl" "ttl = \"24h\""
    Fingerprint "fingerprint" "fingerprint = body + path"
    Scope "scope" "scope = user.id"
    InFlight "in_flight" "in_flight = reject"
    Mismatch "mismatch" "mismatch = 422"
    Record "record" "record = all - 400"
    Replay "replay" "replay = status + body"
    ReplayStatus "replay_status" "replay_status = 200"
    ReplayHeader "replay_header" "replay_header = \"Idempotent-Replayed\""
    ReplayWith "replay_with" "replay_with = header(\"X-Should-Retry\", \"false\", server_error)"
    Abandoned "abandoned" "abandoned = refuse"
    MaxResponse "max_response" "max_response = \"1MiB\""
    Timeout "timeout" "timeout = \"30s\""
    Errors "errors" "errors = render"
    Shadow "shadow" "shadow"
    Crate "crate" "crate = ::idem_axum"
}

/// The options of a function without a request. A test of `function` compares them with what it takes.
pub(crate) const OF_FUNCTIONS: &[&str] =
    &["engine", "key", "ttl", "fingerprint", "scope", "in_flight", "abandoned", "crate"];

/// What the attribute is written on, as far as its options say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Handler,
    Function,
}

impl Target {
    /// A function is known by `engine`.
    pub(crate) fn of(options: &TokenStream) -> Self {
        let is_engine = |token| matches!(token, TokenTree::Ident(name) if name == "engine");
        if options.clone().into_iter().any(is_engine) { Self::Function } else { Self::Handler }
    }

    fn known(self) -> &'static [&'static str] {
        match self {
            Self::Handler => OptionName::ALL,
            Self::Function => OF_FUNCTIONS,
        }
    }

    fn example(self, name: OptionName) -> &'static str {
        match (self, name) {
            (Self::Function, OptionName::Key) => "key = order.id",
            (Self::Function, OptionName::Scope) => "scope = \"ship\"",
            (Self::Function, OptionName::Fingerprint) => "fingerprint = order",
            _ => name.example(),
        }
    }
}

/// One option.
pub(crate) struct WrittenOption {
    pub(crate) name: OptionName,
    /// The name as the user wrote it. Mistakes that span two options are reported at it.
    pub(crate) ident: Ident,
    /// `None` for a name alone.
    pub(crate) value: Option<Expr>,
}

/// All options that could be read, each at most once, in the order of [`OptionName`].
pub(crate) fn parse(tokens: TokenStream, target: Target, errors: &mut Errors) -> Vec<WrittenOption> {
    let mut options = Vec::new();
    let parser = |input: ParseStream| {
        while !input.is_empty() {
            let mut separators = "`,`";
            match option(input, target, options.last()) {
                Ok(option) => {
                    if matches!(option.name, OptionName::Fingerprint | OptionName::Record | OptionName::Replay) {
                        separators = "`+` or `,`";
                    }
                    add(&mut options, option, errors);
                }
                Err(error) => {
                    errors.push(error);
                    skip_to_comma(input);
                }
            }
            comma(input, separators, errors);
        }
        Ok(())
    };
    // The loop reads to the end and reports on the way, so there is nothing left to fail here; if there were, it
    // would be reported.
    let outcome = parser.parse2(tokens);
    errors.keep(outcome);
    options.sort_by_key(|option| option.name);
    options
}

/// The one place that knows about options given twice.
fn add(options: &mut Vec<WrittenOption>, option: WrittenOption, errors: &mut Errors) {
    if options.iter().any(|earlier| earlier.name == option.name) {
        errors.at(&option.ident, format!("option `{}` is given twice; keep one of the two", option.ident));
    } else {
        options.push(option);
    }
}

fn option(input: ParseStream, target: Target, previous: Option<&WrittenOption>) -> syn::Result<WrittenOption> {
    let (ident, spelling) = name(input)?;
    let written = spelling.to_string().replace(' ', "");
    let Some(name) = OptionName::named(&written) else {
        // Its value is read past, so that the commas in it are not taken for the next option.
        if input.parse::<Token![=]>().is_ok() {
            value(input).ok();
        }
        return Err(syn::Error::new_spanned(spelling, unknown(&written, target, previous)));
    };
    let example = target.example(name);
    let is_flag = matches!(name, OptionName::Required | OptionName::Shadow);
    if is_flag && ends(input) {
        return Ok(WrittenOption { name, ident, value: None });
    }
    if !ends(input) && input.parse::<Token![=]>().is_err() {
        let message = if is_flag {
            format!("`{written}` is a flag: write it without a value")
        } else {
            format!("expected `=` after `{written}`: write `{example}`")
        };
        return Err(syn::Error::new_spanned(next(input), message));
    }
    if ends(input) {
        let message = format!("`{written}` needs a value: write `{example}`");
        return Err(syn::Error::new_spanned(ident, message));
    }
    let value = value(input).map_err(|unreadable| {
        let is_pointer = unreadable.to_string().replace(' ', "").contains("json(/");
        let message = match name {
            OptionName::Fingerprint if is_pointer => {
                "a JSON pointer is in quotes: write `fingerprint = json(\"/a\", \"/b/0\")`".to_owned()
            }
            _ => format!("this is not a value for `{written}`: write `{example}`"),
        };
        syn::Error::new_spanned(unreadable, message)
    })?;
    Ok(WrittenOption { name, ident, value: Some(value) })
}

/// What to say about a name that is no option: it may be a part of the option before it, belong to the engine, or be a value.
fn unknown(written: &str, target: Target, previous: Option<&WrittenOption>) -> String {
    let parts: (&[&str], &str) = match previous.filter(|_| target == Target::Handler).map(|option| option.name) {
        Some(OptionName::Fingerprint) => (&["method", "path", "query", "body", "json"], "`fingerprint = body + path`"),
        Some(OptionName::Record) => (terms::CLASSES, "`record = success + client_error`"),
        Some(OptionName::Replay) => (terms::PIECES, "`replay = status + body`"),
        Some(OptionName::Scope) => (&["global", "path"], "`scope = (user.id, path)`"),
        _ => (&[], ""),
    };
    if parts.0.contains(&written) {
        return format!("a comma ends the value of the option before `{written}`: write for example {}", parts.1);
    }
    if let Some((_, call)) = OF_THE_ENGINE.iter().find(|(name, _)| *name == written) {
        let example = format!("`Idempotency::builder(store){call}.build()`");
        return format!("`{written}` is set on the engine, and not on an endpoint: write for example {example}");
    }
    if let Some((_, option)) = VALUES.iter().find(|(value, _)| *value == written) {
        return format!("`{written}` is a value, and no option: write `{option}`");
    }
    let turned_off = TURNED_OFF.iter().find(|(method, _)| *method == written && target == Target::Handler);
    if let Some((_, flag)) = turned_off {
        return format!(
            "`{written}` is no option: leave out `{flag}`, or write `.{written}()` in the `const` policy that has it"
        );
    }
    errors::unknown("option", written, target.known())
}

/// The methods of a policy that turn a flag off.
const TURNED_OFF: &[(&str, &str)] = &[("optional", "required"), ("enforced", "shadow")];

/// The values that have a name, with their option.
const VALUES: &[(&str, &str)] = &[
    ("refuse", "abandoned = refuse"),
    ("reject", "in_flight = reject"),
    ("rerun", "abandoned = rerun"),
    ("wait", "in_flight = wait(\"5s\")"),
];

/// What is set for all endpoints of an engine, and how.
const OF_THE_ENGINE: &[(&str, &str)] = &[
    ("clock", ".clock(clock)"),
    ("lease", ".lease(Duration::from_secs(30))"),
    ("max_executions", ".max_executions(1000)"),
    ("namespace", ".namespace(\"shop\")"),
    ("store", ""),
];

/// An option's name, and all of it as spelled: `in-flight` is read as one, so that the message can be about it.
fn name(input: ParseStream) -> syn::Result<(Ident, TokenStream)> {
    if !input.peek(Ident::peek_any) {
        let message = "expected an option, such as `ttl = \"24h\"`";
        return Err(syn::Error::new_spanned(next(input), message));
    }
    let ident = input.call(Ident::parse_any)?;
    let mut spelling = ident.to_token_stream();
    while input.peek(Token![-]) && input.peek2(Ident::peek_any) {
        input.parse::<Token![-]>()?.to_tokens(&mut spelling);
        input.call(Ident::parse_any)?.to_tokens(&mut spelling);
    }
    Ok((ident, spelling))
}

/// A value, or all the tokens up to the next comma if they are none.
fn value(input: ParseStream) -> Result<Expr, TokenStream> {
    // Ahead first: a failed parse would leave the input somewhere in the middle of the value.
    let ahead = input.fork();
    match ahead.parse() {
        Ok(value) => {
            input.advance_to(&ahead);
            Ok(value)
        }
        Err(_) => Err(skip_to_comma(input)),
    }
}

/// Options are separated by commas. A missing one is reported at the token after it.
fn comma(input: ParseStream, separators: &str, errors: &mut Errors) {
    if !ends(input) {
        errors.at(next(input), format!("expected {separators} before this"));
        if !starts_option(&input.fork()) {
            skip_to_comma(input);
        }
    }
    input.parse::<Token![,]>().ok();
}

fn starts_option(input: ParseStream) -> bool {
    let known = name(input).is_ok_and(|(ident, _)| OptionName::named(&ident.to_string()).is_some());
    known && (ends(input) || input.peek(Token![=]))
}

fn ends(input: ParseStream) -> bool {
    input.is_empty() || input.peek(Token![,])
}

/// The token that comes next, to put a caret under.
fn next(input: ParseStream) -> Option<TokenTree> {
    input.fork().parse().ok()
}

fn skip_to_comma(input: ParseStream) -> TokenStream {
    let mut skipped = TokenStream::new();
    while !ends(input) {
        let Ok(token) = input.parse::<TokenTree>() else { break };
        skipped.extend([token]);
    }
    skipped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::collect;
    use quote::quote;

    fn read(tokens: TokenStream) -> (Vec<OptionName>, String) {
        let (options, mistakes) = collect(|errors| parse(tokens, Target::Handler, errors));
        (options.iter().map(|option| option.name).collect(), mistakes.to_string())
    }

    #[test]
    fn options_come_in_the_order_of_the_table() {
        let (keys, mistakes) = read(quote!(errors = a::<B, C>, ttl = "1h", required, crate = x, header = "H",));
        assert_eq!(
            keys,
            [OptionName::Header, OptionName::Required, OptionName::Ttl, OptionName::Errors, OptionName::Crate]
        );
        assert_eq!(mistakes, "");
    }

    #[test]
    fn one_mistake_does_not_hide_the_options_after_it() {
        for tokens in [
            quote!(tll = f::<A, B>(), header = "H"),
            quote!(ttl, header = "H"),
            quote!(ttl =, header = "H"),
            quote!(ttl("24h"), header = "H"),
            quote!(ttl: "24h", header = "H"),
            quote!(ttl "24h", header = "H"),
            quote!(ttl = "24h" "1h", header = "H"),
            quote!(ttl = "24h" required "1h", header = "H"),
            quote!(ttl == "24h", header = "H"),
            quote!("24h", header = "H"),
            quote!(in-flight = reject, header = "H"),
            quote!(a::b = 1, header = "H"),
            quote!(fingerprint = body +, header = "H"),
            quote!(, header = "H"),
            quote!(header = "H",, required = true),
        ] {
            let (keys, mistakes) = read(tokens.clone());
            assert!(keys.contains(&OptionName::Header), "{tokens}");
            assert_eq!(mistakes.matches("compile_error").count(), 1, "{tokens}: {mistakes}");
        }
    }

    #[test]
    fn what_is_written_instead_fits_a_function() {
        let (_, mistakes) = collect(|errors| parse(quote!(key, scope, fingerprint), Target::Function, errors));
        for example in ["`key = order.id`", "`scope = \\\"ship\\\"`", "`fingerprint = order`"] {
            assert!(mistakes.to_string().contains(example), "{example}: {mistakes}");
        }
    }

    #[test]
    fn a_missing_comma_hides_nothing() {
        let (keys, mistakes) = read(quote!(ttl = "1h" header = "H" required));
        assert_eq!(keys, [OptionName::Header, OptionName::Required, OptionName::Ttl]);
        assert_eq!(mistakes.matches("expected `,`").count(), 2, "{mistakes}");
    }

    #[test]
    fn the_first_of_two_counts() {
        let (keys, mistakes) = read(quote!(ttl = "1h", required, ttl = "2h", required));
        assert_eq!(keys, [OptionName::Required, OptionName::Ttl]);
        assert_eq!(mistakes.matches("is given twice").count(), 2, "{mistakes}");
    }
}
