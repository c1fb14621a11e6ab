//! A plain function: what may be annotated, and its options. Without a request most options of a handler mean nothing.

use crate::{
    errors::Errors,
    expression::{self, Variables},
    handler::{Handler, asynchronous},
    options::{OptionName, WrittenOption},
    resolve::{self, quoted_duration},
    value,
};
use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::{Expr, FnArg, PatType, Receiver, ReceiverKind, ReturnType, Safety, Signature, Type};

/// What the attribute declares.
pub(crate) struct FunctionOptions {
    /// The crate that has the engine.
    pub(crate) krate: TokenStream,
    pub(crate) engine: Expr,
    pub(crate) scope: Expr,
    pub(crate) key: Expr,
    pub(crate) fingerprint: Option<Expr>,
    /// `.ttl(..).abandoned(..)`, calls on `Once`.
    pub(crate) settings: TokenStream,
}

/// Resolves the options. `None` if an option is missing without which there is no call.
pub(crate) fn resolve(
    options: &[WrittenOption],
    function: Option<&Handler>,
    home: &TokenStream,
    errors: &mut Errors,
) -> Option<FunctionOptions> {
    let krate = resolve::krate(options, home, errors);
    let variables = function.map(|function| Variables::of(&function.arguments));
    let mut settings = TokenStream::new();
    let (mut engine, mut scope, mut key, mut fingerprint) = (None, None, None, None);
    for WrittenOption { name, ident, value } in options {
        if let Some(why) = meaningless(*name) {
            errors.at(ident, format!("a function without a request {why}: remove this"));
            continue;
        }
        // The parser lets only a flag through without a value, and flags mean nothing here.
        let Some(value) = value else { continue };
        match name {
            OptionName::Engine => engine = errors.keep(at_once(value, "engine")),
            OptionName::Scope => scope = errors.keep(function_scope(value)),
            OptionName::Key => key = errors.keep(function_key(value, function, variables.as_ref())),
            OptionName::Fingerprint => fingerprint = errors.keep(function_fingerprint(value)).flatten(),
            OptionName::Ttl => {
                let ttl = written_out(value, name.example(), "ttl").and_then(resolve::ttl);
                settings.extend(errors.keep(ttl).map(|ttl| quote!(.ttl(#ttl))));
            }
            OptionName::InFlight => settings.extend(errors.keep(in_flight(value, &krate))),
            OptionName::Abandoned => settings
                .extend(errors.keep(resolve::abandoned(value, &krate)).map(|abandoned| quote!(.abandoned(#abandoned)))),
            _ => {}
        }
    }
    let written = |name| options.iter().any(|option| option.name == name);
    let mut missing = |name, message: &str| {
        if !written(name) {
            errors.push(syn::Error::new(proc_macro2::Span::call_site(), message));
        }
    };
    missing(
        OptionName::Engine,
        "`engine` is missing: write `engine = app.idempotency`; for a handler of axum, use the attribute of `idem-axum`",
    );
    missing(
        OptionName::Scope,
        "`scope` is missing: it names the function or its queue, so that its keys collide with no others; write `scope = \"ship\"`",
    );
    missing(
        OptionName::Key,
        "`key` is missing: there is no request to take it from; write an expression over the arguments, such as `key = order.id`",
    );
    Some(FunctionOptions { krate, engine: engine?, scope: scope?, key: key?, fingerprint, settings })
}

fn at_once(value: &Expr, option: &'static str) -> syn::Result<Expr> {
    expression::evaluated_at_once(value, option, "let the caller do that, and take the result as an argument")
}

/// Why an option means nothing for a function. `None` if it means something.
fn meaningless(name: OptionName) -> Option<&'static str> {
    match name {
        OptionName::Engine
        | OptionName::Key
        | OptionName::Ttl
        | OptionName::Fingerprint
        | OptionName::Scope
        | OptionName::InFlight
        | OptionName::Abandoned
        | OptionName::Crate => None,
        OptionName::Policy => Some("has no `policy`, and takes options such as `ttl = \"7d\"`"),
        OptionName::Header | OptionName::MinKey => Some("has no header, and its key is the value of `key`"),
        OptionName::Required => Some("always has a key"),
        OptionName::Mismatch => Some("has no status, and returns `RefusalReason::Mismatch` as its error"),
        OptionName::Record => Some("has no status: its `Ok` is recorded, and its `Err` is not"),
        OptionName::Replay | OptionName::ReplayStatus | OptionName::ReplayHeader | OptionName::ReplayWith => {
            Some("has no response, and returns the recorded value")
        }
        OptionName::MaxResponse => Some("has no response, and its value is recorded whole"),
        OptionName::Timeout => Some("has no `timeout`, and can use `tokio::time::timeout` itself"),
        OptionName::Errors => Some("returns a refusal as its error, made by `From<RefusalReason>`"),
        OptionName::Shadow => Some("has no shadow mode"),
    }
}

fn function_scope(value: &Expr) -> syn::Result<Expr> {
    if let Expr::Tuple(tuple) = value::bare(value) {
        let message = "a function has a scope of one value: write its name, and put the other values into `key`";
        return Err(syn::Error::new_spanned(tuple, message));
    }
    at_once(value, "scope")
}

fn function_key(value: &Expr, function: Option<&Handler>, variables: Option<&Variables>) -> syn::Result<Expr> {
    let expression = at_once(value, "key")?;
    let has_receiver = function.is_some_and(|function| function.signature.receiver().is_some());
    if let Some(variables) = variables.filter(|variables| !has_receiver && !variables.are_in(&expression)) {
        let arguments = variables.listed();
        let message = format!(
            "this uses no argument of the function, so all calls would have the same key: write an expression over the \
             arguments{arguments}, such as `key = order.id`"
        );
        return Err(syn::Error::new_spanned(value, message));
    }
    Ok(expression)
}

/// `None` for `none`.
fn function_fingerprint(value: &Expr) -> syn::Result<Option<Expr>> {
    if value::word(value).is_some_and(|word| word == "none") {
        return Ok(None);
    }
    if let Expr::Binary(sum) = value::bare(value) {
        let message = "a function has no request, so its fingerprint has no parts: write an argument that is `Serialize` and equal in \
            every call with the key, such as `fingerprint = order`";
        return Err(syn::Error::new_spanned(sum, message));
    }
    at_once(value, "fingerprint").map(Some)
}

/// A duration that is not the name of a constant: there is no policy that could have it.
fn written_out<'a>(duration: &'a Expr, example: &str, method: &str) -> syn::Result<&'a Expr> {
    match value::bare(duration) {
        Expr::Lit(_) | Expr::Unary(_) => Ok(duration),
        _ => {
            let message = format!(
                "expected a duration in quotes: write `{example}`; for a constant, call `Idempotency::once` and its `{method}` \
                 instead of the attribute"
            );
            Err(syn::Error::new_spanned(duration, message))
        }
    }
}

/// `reject` or `wait("5s")`
fn in_flight(value: &Expr, krate: &TokenStream) -> syn::Result<TokenStream> {
    if value::word(value).is_some_and(|word| word == "reject") {
        return Ok(quote!(.in_flight(#krate::WhenInFlight::Reject)));
    }
    match value::call(value) {
        Some((name, arguments)) if name == "wait" => match value::argument(arguments) {
            Some(longest) => {
                let longest = written_out(longest, "wait(\"5s\")", "in_flight").and_then(resolve::wait)?;
                let longest = quoted_duration(longest);
                Ok(quote!(.in_flight(#krate::WhenInFlight::Wait(#longest))))
            }
            None => Err(syn::Error::new_spanned(value, "`wait` needs a duration: write `wait(\"5s\")`")),
        },
        Some((name, _)) if name == "reject" => {
            let message =
                "a function has no status: write `reject`, which returns `RefusalReason::InFlight` as its error";
            Err(syn::Error::new_spanned(value, message))
        }
        _ => Err(value::unknown(value, "value", &["reject", "wait(\"5s\")"])),
    }
}

/// What cannot be a function that runs in a task, and whose value is recorded.
pub(crate) fn mistakes(function: &Handler) -> Vec<syn::Error> {
    let Signature { asyncness, fn_token, safety, output, inputs, ident, .. } = &function.signature;
    let mut mistakes = Vec::new();
    let mut at = |tokens: &dyn ToTokens, message: &str| mistakes.push(syn::Error::new_spanned(tokens, message));
    if asyncness.is_none() {
        let message = asynchronous("the function waits for a store, so it must be an `async fn`", &function.signature);
        at(fn_token, &message);
    }
    if let Safety::Unsafe(unsafety) = safety {
        at(unsafety, "the function cannot be `unsafe`: remove this, and put `unsafe` around the lines that need it");
    }
    match output {
        ReturnType::Default => {
            at(ident, "a refusal is returned as an error: return a `Result` whose error has `From<RefusalReason>`");
        }
        // Of a function that is not `async`, this is the future.
        ReturnType::Type(..) if asyncness.is_none() => {}
        ReturnType::Type(_, ty) => {
            for hidden in crate::handler::impl_traits(ty) {
                at(&hidden, "later calls decode the recorded value: name its type");
            }
        }
    }
    for argument in inputs {
        match argument {
            FnArg::Receiver(receiver) if is_reference(receiver) => at(
                receiver,
                "the function runs in its own task, which cannot borrow: take `self`, or `self: Arc<Self>`",
            ),
            FnArg::Typed(PatType { ty, .. }) if is_borrowed(ty) => {
                at(ty, "the function runs in its own task, which cannot borrow: take it by value, or in an `Arc`")
            }
            FnArg::Receiver(_) | FnArg::Typed(_) => {}
        }
    }
    mistakes
}

/// A reference that may not live for ever.
fn is_borrowed(ty: &Type) -> bool {
    matches!(ty, Type::Reference(reference) if reference.lifetime.as_ref().is_none_or(|lifetime| lifetime.ident != "static"))
}

/// `&self`, or `self: &Self`.
fn is_reference(receiver: &Receiver) -> bool {
    match &receiver.kind {
        ReceiverKind::Reference(..) => true,
        ReceiverKind::Typed(_, ty) => is_borrowed(ty),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::OF_FUNCTIONS;

    #[test]
    fn the_options_that_are_suggested_for_a_function_mean_something() {
        for name in OptionName::ALL {
            let means_something = OptionName::named(name).is_some_and(|name| meaningless(name).is_none());
            assert_eq!(OF_FUNCTIONS.contains(name), means_something, "{name}");
        }
    }
}
