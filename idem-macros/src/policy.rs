//! The options resolved: every value checked, every rule that spans two options applied, and the `const` chain on
//! `Policy` that says the same.

use crate::{
    args::{Name, Written},
    errors::Errors,
    scope::{self, Scope},
    sum, value,
};
use proc_macro2::{Literal, TokenStream};
use quote::{ToTokens, quote};
use std::time::Duration;
use syn::{Expr, ExprPath};

/// What the attribute declares.
pub(crate) struct Resolved {
    /// The adapter crate.
    pub(crate) krate: TokenStream,
    /// `::idem_axum::Policy::DEFAULT.ttl(..)`, a constant expression.
    pub(crate) policy: TokenStream,
    /// The expressions of `scope`; none where the scope does not depend on the handler's arguments.
    pub(crate) scope: Vec<Expr>,
}

/// Resolves what can be. What cannot is reported and stays at its default, so that the function is emitted all the
/// same.
pub(crate) fn resolve(options: &[Written], errors: &mut Errors) -> Resolved {
    let value = |name| options.iter().find(|option| option.name == name)?.value.as_ref();
    let krate = value(Name::Crate).and_then(|value| krate(value, errors)).unwrap_or_else(|| quote!(::idem_axum));
    let base = value(Name::Policy).and_then(|value| errors.keep(value::path(value, "policy")));
    let mut policy = base.map_or_else(|| quote!(#krate::Policy::DEFAULT), ToTokens::to_token_stream);

    let mut resolver = Resolver { private: quote!(#krate::private), scope: Vec::new(), replays_body: true, errors };
    for option in options {
        policy.extend(resolver.call(option));
    }
    Resolved { scope: resolver.scope, policy, krate }
}

fn krate(value: &Expr, errors: &mut Errors) -> Option<TokenStream> {
    match errors.keep(value::path(value, "crate")) {
        Some(path) => Some(path.to_token_stream()),
        // What the string says is clear enough to go on with, and spares errors about a missing `::idem_axum`.
        None => value::string(value)?.parse::<ExprPath>().ok().map(ExprPath::into_token_stream),
    }
}

struct Resolver<'a> {
    private: TokenStream,
    scope: Vec<Expr>,
    /// Whether `replay`, which comes before `replay_status` in the table, gives back the body.
    replays_body: bool,
    errors: &'a mut Errors,
}

impl Resolver<'_> {
    /// The call on `Policy` for one option. The method's name is the option's as the user wrote it: an editor that
    /// is asked about the option answers with the method.
    fn call(&mut self, option: &Written) -> Option<TokenStream> {
        let Written { name, ident, value } = option;
        let Some(value) = value else {
            // The parser lets only a flag through without a value.
            return Some(quote!(.#ident()));
        };
        let (private, example, errors) = (&self.private, name.example(), &mut *self.errors);
        let argument = match name {
            Name::Policy | Name::Crate => return None,
            Name::Header => errors.keep(value::header_name(value, example))?.to_token_stream(),
            Name::Shadow => match errors.keep(flag(value, "shadow"))? {
                true => return Some(quote!(.#ident())),
                false => return Some(quote!(.enforced())),
            },
            Name::Required => match errors.keep(flag(value, "required"))? {
                true => return Some(quote!(.#ident())),
                false => return Some(quote!(.optional())),
            },
            Name::MinKey => integer(errors.keep(value::number(value, 1..=255, "a number of characters", example))?),
            Name::Ttl => {
                let zero = "`ttl` must be longer than zero; to not protect this endpoint, leave the attribute away";
                duration(errors.keep(value::duration(value, example, zero))?)
            }
            Name::Fingerprint => sum::fingerprint(value, private, errors)?,
            Name::Scope => match errors.keep(scope::read(value))? {
                Scope::Global => quote!(#private::Scope::Global),
                Scope::Header(header) => quote!(#private::Scope::Header(#header)),
                Scope::Arguments(scope) => {
                    self.scope = scope;
                    return Some(quote!(.scope_of_arguments()));
                }
            },
            Name::InFlight => errors.keep(in_flight(value, private))?,
            Name::Mismatch => integer(errors.keep(value::number(value, value::REFUSAL, "an error status", example))?),
            Name::Record => sum::record(value, private, errors)?,
            Name::Replay => {
                let replay = sum::replay(value, private, errors)?;
                self.replays_body = replay.has_body;
                replay.tokens
            }
            Name::ReplayStatus if !self.replays_body => {
                let message = "`replay_status` is the status the recorded body is sent with, and `replay` gives back \
                    no body: add `body` there, or leave this away";
                errors.at(ident, message);
                return None;
            }
            Name::ReplayStatus => integer(errors.keep(value::number(value, value::RECORDED, "a status", example))?),
            Name::ReplayHeader => match errors.keep(replay_header(value, example))? {
                Some(header) => header.to_token_stream(),
                None => return Some(quote!(.no_replay_header())),
            },
            Name::ReplayWith => sum::added_headers(value, private, errors)?,
            Name::Abandoned => errors.keep(abandoned(value, private))?,
            Name::MaxResponse => Literal::u64_unsuffixed(errors.keep(value::size(value, example))?).to_token_stream(),
            Name::Errors => errors.keep(value::path(value, "errors"))?.to_token_stream(),
        };
        Some(quote!(.#ident(#argument)))
    }
}

fn flag(value: &Expr, name: &str) -> syn::Result<bool> {
    value::boolean(value)
        .ok_or_else(|| syn::Error::new_spanned(value, format!("`{name}` is a flag: write it without a value")))
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
            let status = integer(value::number(status, value::REFUSAL, "an error status", "reject(423)")?);
            return Ok(quote!(#private::InFlight::reject(#status)));
        }
        ("wait", _, Some(longest)) => {
            let zero = "the wait must be longer than zero; to not wait, write `in_flight = reject`";
            let longest = duration(value::duration(longest, "wait(\"5s\")", zero)?);
            return Ok(quote!(#private::InFlight::wait(#longest)));
        }
        ("reject", ..) => "`reject` takes one status: write `reject(423)`, or `reject` for 409",
        ("wait", ..) => "`wait` takes how long: write `wait(\"5s\")`",
        _ if matches!(value::bare(value), Expr::Lit(_)) && value::string(value).is_none() => {
            "to refuse with a status, write for example `reject(423)`"
        }
        _ => return Err(value::unknown(value, "value", &["reject", "wait"])),
    };
    Err(syn::Error::new_spanned(value, message))
}

fn abandoned(value: &Expr, private: &TokenStream) -> syn::Result<TokenStream> {
    match value::word(value).map(ToString::to_string).as_deref() {
        Some("refuse") => Ok(quote!(#private::Abandoned::Refuse)),
        Some("rerun") => Ok(quote!(#private::Abandoned::Rerun)),
        _ => Err(value::unknown(value, "value", &["refuse", "rerun"])),
    }
}

/// `None` for `none`.
fn replay_header(value: &Expr, example: &str) -> syn::Result<Option<String>> {
    if let Some(word) = value::word(value) {
        return if word == "none" { Ok(None) } else { Err(value::unknown(value, "value", &["none"])) };
    }
    match value::header_name(value, example)? {
        none if none == "none" => Err(syn::Error::new_spanned(value, "for no marker, drop the quotes: write `none`")),
        header => Ok(Some(header)),
    }
}

fn integer(number: u16) -> TokenStream {
    Literal::u16_unsuffixed(number).into_token_stream()
}

fn duration(duration: Duration) -> TokenStream {
    let seconds = Literal::u64_unsuffixed(duration.as_secs());
    let nanoseconds = Literal::u32_unsuffixed(duration.subsec_nanos());
    quote!(::core::time::Duration::new(#seconds, #nanoseconds))
}

#[cfg(test)]
mod tests;
