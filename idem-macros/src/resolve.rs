//! The options resolved: every value checked, every rule that spans two options applied, and the `const` chain on
//! `Policy` that says the same.

use crate::{
    errors::Errors,
    expression::{self, Variables},
    options::{OptionName, WrittenOption},
    scope::{self, DeclaredScope, Owner},
    spans::located_at,
    terms, value,
};
use proc_macro2::{Literal, Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use std::time::Duration;
use syn::{Expr, ExprPath, PatType, spanned::Spanned};

/// What the attribute declares.
pub(crate) struct ResolvedOptions {
    /// The adapter crate.
    pub(crate) krate: TokenStream,
    /// `::idem_axum::Policy::DEFAULT.ttl(..)`, a constant expression.
    pub(crate) policy: TokenStream,
    /// The expressions of `scope`; none if the scope does not depend on the handler's arguments.
    pub(crate) scope: Vec<Expr>,
    /// The expression of `key`.
    pub(crate) key: Option<Expr>,
}

/// Resolves what can be. What cannot is reported and has its default, so that the function is still emitted. `arguments` are the
/// handler's, if they could be read.
pub(crate) fn resolve(
    options: &[WrittenOption],
    arguments: Option<&[PatType]>,
    errors: &mut Errors,
) -> ResolvedOptions {
    let value = |name| options.iter().find(|option| option.name == name)?.value.as_ref();
    let krate = krate(options, &quote!(::idem_axum), errors);
    let base = value(OptionName::Policy).and_then(|value| errors.keep(value::path(value, "policy")));
    let mut policy = base.map_or_else(|| quote!(#krate::Policy::DEFAULT), ToTokens::to_token_stream);

    if options.iter().any(|option| option.name == OptionName::Key) {
        beside_key(options, arguments.unwrap_or_default(), errors);
    }
    let mut resolver = Resolver {
        krate: &krate,
        private: quote!(#krate::private),
        variables: arguments.map(Variables::of),
        scope: Vec::new(),
        key: None,
        replays_body: true,
        errors,
    };
    for option in options {
        policy.extend(resolver.call(option));
    }
    let Resolver { scope, key, .. } = resolver;
    ResolvedOptions { scope, key, policy, krate }
}

/// Reports what contradicts `key`.
fn beside_key(options: &[WrittenOption], arguments: &[PatType], errors: &mut Errors) {
    for WrittenOption { name, ident, .. } in options {
        match name {
            OptionName::Header => errors.at(ident, "`key` takes the place of the header: keep one of the two"),
            OptionName::MinKey => {
                errors
                    .at(ident, "`min_key` is about a key in a header, and `key` takes every text: keep one of the two");
            }
            _ => {}
        }
    }
    for PatType { ty, .. } in arguments {
        if expression::names_key(ty) {
            let message = "the extractors run before `key` is evaluated: remove this argument, and write \
                `IdempotencyKey::from_text(..)` in the handler";
            errors.at(ty, message);
        }
    }
}

/// The crate that generated code calls; `home` unless the option says another.
pub(crate) fn krate(options: &[WrittenOption], home: &TokenStream, errors: &mut Errors) -> TokenStream {
    let written = options.iter().find(|option| option.name == OptionName::Crate);
    let Some(value) = written.and_then(|option| option.value.as_ref()) else { return home.clone() };
    match errors.keep(value::path(value, "crate")) {
        Some(path) => path.to_token_stream(),
        // What the string says is clear enough to continue with, and spares errors about a missing crate.
        None => {
            let path = value::string(value).and_then(|path| path.parse::<ExprPath>().ok());
            path.map_or_else(|| home.clone(), ExprPath::into_token_stream)
        }
    }
}

struct Resolver<'a> {
    krate: &'a TokenStream,
    private: TokenStream,
    /// What the handler's arguments bind, if they could be read.
    variables: Option<Variables>,
    scope: Vec<Expr>,
    key: Option<Expr>,
    /// Whether `replay`, which comes before `replay_status` in the table, sends the body.
    replays_body: bool,
    errors: &'a mut Errors,
}

impl Resolver<'_> {
    /// The call on `Policy` for one option. The method's name is the option's as the user wrote it: an editor that
    /// is asked about the option shows the method.
    fn call(&mut self, option: &WrittenOption) -> Option<TokenStream> {
        let WrittenOption { name, ident, value } = option;
        let Some(value) = value else {
            // The parser lets only a flag through without a value.
            return Some(quote!(.#ident()));
        };
        let (krate, private, example, errors) = (self.krate, &self.private, name.example(), &mut *self.errors);
        let argument = match name {
            OptionName::Policy | OptionName::Crate | OptionName::Engine => return None,
            OptionName::Header => errors.keep(value::header_name(value, example))?.to_token_stream(),
            OptionName::Key => {
                self.key = Some(errors.keep(expression::key(value, self.variables.as_ref()))?);
                return Some(quote!(.key_from_arguments()));
            }
            OptionName::Required => {
                errors.keep(flag(value, "required", "optional"))?;
                return Some(quote!(.#ident()));
            }
            OptionName::Shadow => {
                errors.keep(flag(value, "shadow", "enforced"))?;
                return Some(quote!(.#ident()));
            }
            OptionName::MinKey => {
                integer(errors.keep(value::number(value, 1..=255, "a number of characters", example))?)
            }
            OptionName::Ttl => errors.keep(ttl(value))?,
            OptionName::Fingerprint if terms::is_none(value) => return Some(quote!(.no_fingerprint())),
            OptionName::Fingerprint => terms::fingerprint(value, private, errors)?,
            OptionName::Scope => {
                let DeclaredScope { owner, path } = errors.keep(scope::read(value, self.variables.as_ref()))?;
                match (owner, path) {
                    (Owner::Caller, _) => quote!(#private::Scope::Path),
                    (Owner::Global, false) => quote!(#private::Scope::Global),
                    (Owner::Global, true) => quote!(#private::Scope::GlobalAndPath),
                    (Owner::Header(header), false) => quote!(#private::Scope::Header(#header)),
                    (Owner::Header(header), true) => quote!(#private::Scope::HeaderAndPath(#header)),
                    (Owner::Arguments(scope), path) => {
                        self.scope = scope;
                        let with_path = path.then(|| quote!(.scope_of_arguments_and_path()));
                        return Some(with_path.unwrap_or_else(|| quote!(.scope_of_arguments())));
                    }
                }
            }
            OptionName::InFlight => errors.keep(in_flight(value, private))?,
            OptionName::Mismatch => {
                integer(errors.keep(value::number(value, value::REFUSAL, "an error status", example))?)
            }
            OptionName::Record => terms::record(value, private, errors)?,
            OptionName::Replay => {
                let replay = terms::replay(value, private, errors)?;
                self.replays_body = replay.has_body;
                replay.tokens
            }
            OptionName::ReplayStatus if !self.replays_body => {
                let message = "`replay_status` is the status the recorded body is sent with, and `replay` sends \
                    no body: add `body` there, or remove this";
                errors.at(ident, message);
                return None;
            }
            OptionName::ReplayStatus => {
                integer(errors.keep(value::number(value, value::RECORDED, "a status", example))?)
            }
            OptionName::ReplayHeader => match errors.keep(replay_header(value, example))? {
                // An item is evaluated as soon as the handler is checked, a block only when it is mounted.
                Some(header) => {
                    let checked = quote_spanned! {Span::mixed_site()=> {
                        const _: #krate::Policy = #krate::Policy::DEFAULT.replay_header(#header);
                        #header
                    }};
                    located_at(value.span(), checked)
                }
                None => return Some(quote!(.no_replay_header())),
            },
            OptionName::ReplayWith => terms::added_headers(value, private, errors)?,
            OptionName::Abandoned => errors.keep(abandoned(value, private))?,
            OptionName::MaxResponse => {
                Literal::u64_unsuffixed(errors.keep(value::size(value, example))?).to_token_stream()
            }
            OptionName::Timeout => {
                let zero = "`timeout` must be longer than zero: write for example `timeout = \"30s\"`, or remove this to let the handler run as long as it takes";
                quoted_duration(errors.keep(value::duration(value, example, zero))?)
            }
            OptionName::Errors => errors.keep(value::path(value, "errors"))?.to_token_stream(),
        };
        Some(quote!(.#ident(#argument)))
    }
}

/// `true`. The method named `off` turns the flag off in a policy.
fn flag(value: &Expr, name: &str, off: &str) -> syn::Result<()> {
    let message = match value::boolean(value) {
        Some(true) => return Ok(()),
        Some(false) => format!(
            "`{name}` is off unless it is written: remove the option; if the policy has it, write `.{off}()` in its `const`"
        ),
        None => format!("`{name}` is a flag: write it without a value"),
    };
    Err(syn::Error::new_spanned(value, message))
}

/// `reject`, `reject(423)` or `wait("5s")`
fn in_flight(value: &Expr, private: &TokenStream) -> syn::Result<TokenStream> {
    let (name, arguments) = match value::call(value) {
        Some((name, arguments)) => (Some(name), Some(arguments)),
        None => (value::word(value), None),
    };
    let name = name.map(ToString::to_string).unwrap_or_default();
    let argument = arguments.and_then(value::argument);
    let message = match (name.as_str(), arguments, argument) {
        ("reject", None, _) => return Ok(quote!(#private::InFlight::reject(409))),
        ("reject", _, Some(status)) => {
            let status = integer(value::in_flight_status(status, "reject(423)")?);
            return Ok(quote!(#private::InFlight::reject(#status)));
        }
        ("wait", _, Some(longest)) => {
            let longest = quoted_duration(wait(longest)?);
            return Ok(quote!(#private::InFlight::wait(#longest)));
        }
        ("reject", ..) => "`reject` takes one status: write `reject(423)`, or `reject` for 409",
        ("wait", ..) => "`wait` needs a duration: write `wait(\"5s\")`",
        _ if matches!(value::bare(value), Expr::Lit(_)) && value::string(value).is_none() => {
            "to refuse with a status, write for example `reject(423)`"
        }
        _ => return Err(value::unknown(value, "value", &["reject", "reject(423)", "wait(\"5s\")"])),
    };
    Err(syn::Error::new_spanned(value, message))
}

/// The value of `ttl`.
pub(crate) fn ttl(value: &Expr) -> syn::Result<TokenStream> {
    let zero = "`ttl` must be longer than zero: write for example `ttl = \"24h\"`, or remove the attribute to leave this unprotected";
    value::duration(value, OptionName::Ttl.example(), zero).map(quoted_duration)
}

/// How long `wait` waits.
pub(crate) fn wait(longest: &Expr) -> syn::Result<Duration> {
    let zero =
        "the wait must be longer than zero: write for example `wait(\"5s\")`, or `in_flight = reject` not to wait";
    value::duration(longest, "wait(\"5s\")", zero)
}

pub(crate) fn abandoned(value: &Expr, private: &TokenStream) -> syn::Result<TokenStream> {
    match value::word(value).map(ToString::to_string).as_deref() {
        Some("refuse") => Ok(quote!(#private::Abandoned::Refuse)),
        Some("rerun") => Ok(quote!(#private::Abandoned::Rerun)),
        _ => Err(value::unknown(value, "value", &["refuse", "rerun"])),
    }
}

/// `None` for `none`.
fn replay_header(value: &Expr, example: &str) -> syn::Result<Option<String>> {
    if value::word(value).is_some_and(|word| word == "none") {
        return Ok(None);
    }
    if value::string(value).is_none() {
        let message = format!("expected a header name in quotes, or `none`: write for example `{example}`");
        return Err(syn::Error::new_spanned(value, message));
    }
    match value::header_name(value, example)? {
        none if none == "none" => Err(syn::Error::new_spanned(value, "for no marker, remove the quotes: write `none`")),
        header => Ok(Some(header)),
    }
}

fn integer(number: u16) -> TokenStream {
    Literal::u16_unsuffixed(number).into_token_stream()
}

pub(crate) fn quoted_duration(duration: Duration) -> TokenStream {
    let seconds = Literal::u64_unsuffixed(duration.as_secs());
    let nanoseconds = Literal::u32_unsuffixed(duration.subsec_nanos());
    quote!(::core::time::Duration::new(#seconds, #nanoseconds))
}

#[cfg(test)]
mod tests;
