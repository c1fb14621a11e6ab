//! What may be annotated: an async function that axum can call, taken apart.

use crate::{errors::Errors, expression::Variables};
use proc_macro2::{Delimiter, Group, Ident, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{
    Abi, AssocType, Attribute, FnArg, Generics, Lifetime, Meta, MetaList, ParenthesizedGenericArguments, PatType,
    Receiver, Safety, Signature, Token, Type, TypeFnPtr, TypeReference, Visibility,
    parse::{ParseStream, Parser},
    spanned::Spanned,
    visit_mut::{self, VisitMut},
};

/// As many arguments as axum's `Handler` takes.
const MAX_ARGUMENTS: usize = 16;

/// A handler function. Its block is kept as tokens, so that half-typed code does not remove the function.
pub(crate) struct Handler {
    /// Doc comments and everything else below `#[idempotent]`, but for `debug_handler`.
    pub(crate) attributes: Vec<Attribute>,
    /// `debug_handler` is about the function as the user wrote it.
    pub(crate) debug_handler: Vec<Attribute>,
    pub(crate) visibility: Visibility,
    pub(crate) signature: Signature,
    pub(crate) arguments: Vec<PatType>,
    /// `#![..]` at the top of the block
    pub(crate) inner_attributes: Vec<Attribute>,
    /// The braces and what is between them.
    pub(crate) block: Group,
}

/// `None`, with what is wrong reported, for anything that cannot be wrapped. `mistakes` says what cannot.
pub(crate) fn parse(
    item: TokenStream,
    mistakes: fn(&Handler) -> Vec<syn::Error>,
    errors: &mut Errors,
) -> Option<Handler> {
    let handler = errors.keep(read.parse2(item))?;
    let mistakes = mistakes(&handler);
    if mistakes.is_empty() {
        return Some(handler);
    }
    mistakes.into_iter().for_each(|mistake| errors.push(mistake));
    None
}

fn read(input: ParseStream) -> syn::Result<Handler> {
    let mut attributes = input.call(Attribute::parse_outer)?;
    let visibility = input.parse()?;
    let mut signature = signature(input)?;
    attributes.iter_mut().for_each(allow_what_is_expected);
    for argument in &mut signature.inputs {
        let (FnArg::Typed(PatType { attrs, .. }) | FnArg::Receiver(Receiver { attrs, .. })) = argument;
        attrs.iter_mut().for_each(allow_what_is_expected);
    }
    if input.peek(Token![;]) {
        let message = "`#[idempotent]` needs the function's block: put it where the function is implemented";
        return Err(syn::Error::new_spanned(&signature.ident, message));
    }
    let (mut inner_attributes, block) = split_inner_attributes(block(input)?);
    inner_attributes.iter_mut().for_each(allow_what_is_expected);
    let (debug_handler, attributes) = attributes.into_iter().partition(is_debug_handler);
    let arguments = signature.inputs.iter().filter_map(|argument| match argument {
        FnArg::Typed(typed) => Some(with_static_lifetimes(typed, &signature.generics)),
        FnArg::Receiver(_) => None,
    });
    let arguments = arguments.collect();
    Ok(Handler { attributes, debug_handler, visibility, signature, arguments, inner_attributes, block })
}

/// Writes `allow` for `expect`: what a lint reports of the user's function it may not report of the generated one.
fn allow_what_is_expected(attribute: &mut Attribute) {
    if attribute.path().is_ident("expect")
        && let Meta::List(list) = &mut attribute.meta
    {
        list.path = Ident::new("allow", list.path.span()).into();
    }
}

fn signature(input: ParseStream) -> syn::Result<Signature> {
    let ahead = input.fork();
    let first = ahead.fork().parse::<TokenTree>()?;
    while ahead.peek(Token![const]) || ahead.peek(Token![async]) || ahead.peek(Token![unsafe]) {
        ahead.parse::<TokenTree>()?;
    }
    ahead.parse::<Option<Abi>>()?;
    if ahead.peek(Token![fn]) {
        return input.parse();
    }
    Err(syn::Error::new_spanned(
        first,
        "`#[idempotent]` belongs on an async handler function: move it above an `async fn`",
    ))
}

/// The function's block. A `$block:block` of a `macro_rules!` arrives in invisible groups.
fn block(input: ParseStream) -> syn::Result<Group> {
    let mut token: TokenTree = input.parse()?;
    while let TokenTree::Group(group) = &token {
        let mut inner = group.stream().into_iter();
        match (group.delimiter(), inner.next(), inner.next()) {
            (Delimiter::Brace, ..) => return Ok(group.clone()),
            (Delimiter::None, Some(only), None) => token = only,
            _ => break,
        }
    }
    Err(syn::Error::new_spanned(token, "expected the function's block in braces"))
}

/// Separates the inner attributes, which apply to the whole function, from the block, which becomes an expression.
fn split_inner_attributes(block: Group) -> (Vec<Attribute>, Group) {
    let parser = |input: ParseStream| Ok((input.call(Attribute::parse_inner)?, input.parse()?));
    match parser.parse2(block.stream()) {
        Ok((attributes, rest)) if !attributes.is_empty() => {
            let mut without = Group::new(block.delimiter(), rest);
            without.set_span(block.span());
            (attributes, without)
        }
        // If they do not parse, the compiler reports it at the user's code.
        _ => (Vec::new(), block),
    }
}

/// Writes `'static` for each lifetime of the argument's type that is left out or a parameter of the handler. The type becomes part of a
/// `where` clause, which allows none to be left out, and axum calls a handler with arguments that borrow nothing. Bounds that differ only in
/// lifetimes, such as `Guard<'a>: FromRequestParts<_>` and the same for `Guard<'b>`, are ambiguous to the compiler.
fn with_static_lifetimes(argument: &PatType, generics: &Generics) -> PatType {
    struct NotStatic<'a>(&'a Generics);
    impl VisitMut for NotStatic<'_> {
        fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
            if lifetime.ident == "_" || self.0.lifetimes().any(|parameter| parameter.lifetime == *lifetime) {
                *lifetime = Lifetime::new("'static", lifetime.span());
            }
        }
        fn visit_type_reference_mut(&mut self, reference: &mut TypeReference) {
            let span = reference.and_token.span;
            reference.lifetime.get_or_insert_with(|| Lifetime::new("'static", span));
            visit_mut::visit_type_reference_mut(self, reference);
        }
        // Those of `fn(&str)` and `dyn Fn(&str)` are declared by it.
        fn visit_type_fn_ptr_mut(&mut self, _: &mut TypeFnPtr) {}
        fn visit_parenthesized_generic_arguments_mut(&mut self, _: &mut ParenthesizedGenericArguments) {}
    }
    let mut argument = argument.clone();
    NotStatic(generics).visit_type_mut(&mut argument.ty);
    argument
}

/// `#[debug_handler]` by any path. The compiler expands `#[cfg_attr(..)]` before this attribute, wherever it is.
fn is_debug_handler(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|segment| segment.ident == "debug_handler")
}

/// What axum could not call.
pub(crate) fn mistakes(handler: &Handler) -> Vec<syn::Error> {
    let Signature { constness, asyncness, safety, abi, fn_token, variadic, inputs, .. } = &handler.signature;
    let variables = Variables::of(&handler.arguments);
    let mut mistakes = Vec::new();
    let mut at = |tokens: &dyn ToTokens, message: &str| mistakes.push(syn::Error::new_spanned(tokens, message));
    for attribute in handler.attributes.iter().filter(|attribute| is_ours(attribute)) {
        at(attribute, "`#[idempotent]` is given twice; keep one of the two");
    }
    for attribute in &handler.attributes {
        if is_utoipa_path(attribute) {
            at(attribute, "this describes the handler's arguments: put it above `#[idempotent]`, where it sees them");
        }
        if is_instrument_with_arguments(attribute, &variables) {
            let message = "this records the handler's arguments: put it above `#[idempotent]`, where it sees them; or, for a \
                span that covers replays too, write `skip_all` and no argument in `fields`";
            at(attribute, message);
        }
    }
    if let Some(constness) = constness {
        at(constness, "a handler runs when a request comes: remove `const`");
    }
    if asyncness.is_none() {
        at(fn_token, &asynchronous("a handler must be an `async fn`", &handler.signature));
    }
    if let Safety::Unsafe(unsafety) = safety {
        at(
            unsafety,
            "axum cannot call an unsafe function: remove this, and put `unsafe` around the lines that need it",
        );
    }
    if let Some(abi) = abi {
        at(abi, "axum calls functions with Rust's own ABI: remove this");
    }
    if let Some(variadic) = variadic {
        at(&variadic.dots, "a handler's arguments are extractors, one for each: remove `...`");
    }
    for argument in inputs {
        match argument {
            FnArg::Receiver(receiver) => {
                at(
                    receiver,
                    "axum calls a handler without `self`: take it as an extractor, such as `State(this): State<Self>`",
                );
            }
            FnArg::Typed(PatType { attrs, ty, .. }) => {
                for attribute in attrs.iter().filter(|attribute| attribute.path().is_ident("cfg")) {
                    at(
                        attribute,
                        "an argument is part of the handler's type: write two functions, each with a `#[cfg]`",
                    );
                }
                for hidden in impl_traits(ty) {
                    at(&hidden, "axum cannot know which type this is: name it, or make it a generic parameter");
                }
            }
        }
    }
    if let Some(first_too_many) = inputs.iter().nth(MAX_ARGUMENTS) {
        at(
            first_too_many,
            "a handler takes at most 16 arguments: put some into a tuple, which is an extractor as well",
        );
    }
    mistakes
}

/// What to write in place of a function that is not `async`; `rule` is what it breaks.
pub(crate) fn asynchronous(rule: &str, signature: &Signature) -> String {
    match output_of_future(signature) {
        Some(output) => {
            format!("{rule}: write `async` before this, and `{output}`, the output of the future, as the return type")
        }
        None => format!("{rule}: write `async` before this"),
    }
}

/// The output of the `impl Future` or `dyn Future` that a function returns, also in a box, as it is usually spelled.
fn output_of_future(signature: &Signature) -> Option<String> {
    struct Output(Option<String>);
    impl VisitMut for Output {
        fn visit_assoc_type_mut(&mut self, assigned: &mut AssocType) {
            if assigned.ident == "Output" {
                let spaced = assigned.ty.to_token_stream().to_string();
                let spaces = [(" <", "<"), ("< ", "<"), (" >", ">"), (" :: ", "::"), (" ,", ","), ("& ", "&")];
                self.0 = Some(spaces.iter().fold(spaced, |text, (from, to)| text.replace(from, to)));
            }
        }
    }
    let mut output = Output(None);
    output.visit_return_type_mut(&mut signature.output.clone());
    output.0
}

fn is_ours(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|segment| segment.ident == "idempotent")
}

/// `#[utoipa::path(..)]`, also imported. The builtin `#[path = ".."]` is for modules.
fn is_utoipa_path(attribute: &Attribute) -> bool {
    let is_path = attribute.path().segments.last().is_some_and(|segment| segment.ident == "path");
    is_path && matches!(attribute.meta, Meta::List(_))
}

/// `#[tracing::instrument]` without `skip_all` among its arguments, or with one of the handler's among its `fields`. Below
/// `#[idempotent]` it would record the generated function's only argument instead, silently, or see none of them.
fn is_instrument_with_arguments(attribute: &Attribute, variables: &Variables) -> bool {
    let is_refused = |list: &MetaList| {
        let options = split(&list.tokens);
        let is_skip_all =
            |option: &Vec<TokenTree>| matches!(&option[..], [TokenTree::Ident(name)] if name == "skip_all");
        let has_variable = |option: &Vec<TokenTree>| match &option[..] {
            [TokenTree::Ident(name), TokenTree::Group(fields)] if name == "fields" => {
                split(&fields.stream()).iter().any(|field| variables.are_in_tokens(&value_of(field)))
            }
            _ => false,
        };
        !options.iter().any(is_skip_all) || options.iter().any(has_variable)
    };
    attribute.path().segments.last().is_some_and(|segment| segment.ident == "instrument")
        && !matches!(&attribute.meta, Meta::List(list) if !is_refused(list))
}

/// The value of `name = value`, `%value` or `?value`. A name alone is a field without a value.
fn value_of(field: &[TokenTree]) -> TokenStream {
    let is =
        |token: &TokenTree, marks: &[char]| matches!(token, TokenTree::Punct(mark) if marks.contains(&mark.as_char()));
    let start = match field {
        [first, ..] if is(first, &['%', '?']) => 1,
        _ => field.iter().position(|token| is(token, &['='])).map_or(field.len(), |equals| equals + 1),
    };
    field[start..].iter().cloned().collect()
}

/// Splits tokens at their commas.
fn split(tokens: &TokenStream) -> Vec<Vec<TokenTree>> {
    let tokens: Vec<_> = tokens.clone().into_iter().collect();
    let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(comma) if comma.as_char() == ',');
    tokens.split(is_comma).map(<[_]>::to_vec).collect()
}

/// Finds each `impl Trait` in a type.
pub(crate) fn impl_traits(ty: &Type) -> Vec<Type> {
    struct ImplTraits(Vec<Type>);
    impl VisitMut for ImplTraits {
        fn visit_type_mut(&mut self, ty: &mut Type) {
            if matches!(ty, Type::ImplTrait(_)) {
                self.0.push(ty.clone());
            } else {
                visit_mut::visit_type_mut(self, ty);
            }
        }
    }
    let mut finder = ImplTraits(Vec::new());
    finder.visit_type_mut(&mut ty.clone());
    finder.0
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    #[test]
    fn an_instrument_below_skips_all_arguments() {
        let variables = Variables::of(&[parse_quote!(Claims(claims): Claims), parse_quote!(tenant: Tenant)]);
        let refused = |attribute: Attribute| is_instrument_with_arguments(&attribute, &variables);
        assert!(!refused(parse_quote!(#[instrument(skip_all)])));
        assert!(!refused(parse_quote!(#[tracing::instrument(skip_all, fields(kind = "order"))])));
        assert!(!refused(parse_quote!(#[instrument(name = "order", level = "debug", skip_all, err)])));
        assert!(!refused(parse_quote!(#[other(skip)])));
        assert!(refused(parse_quote!(#[instrument])));
        assert!(refused(parse_quote!(#[instrument()])));
        assert!(refused(parse_quote!(#[tracing::instrument(skip(body))])));
        assert!(refused(parse_quote!(#[instrument(fields(skip_all = true))])));
        assert!(refused(parse_quote!(#[instrument(name = "skip_all")])));
        assert!(refused(parse_quote!(#[instrument(name = skip_all_of_it)])));
        assert!(refused(parse_quote!(#[instrument(fields(tenant = %claims.tenant))])));
        assert!(refused(parse_quote!(#[instrument(skip_all, fields(tenant = %claims.tenant))])));
        assert!(refused(parse_quote!(#[instrument(skip_all, fields(kind = "order", ?claims))])));
        assert!(refused(parse_quote!(#[instrument(skip_all, fields(length = len(&claims)))])));
        assert!(!refused(parse_quote!(#[instrument(skip_all, fields(tenant, kind = %KIND))])));
        assert!(!refused(parse_quote!(#[instrument(skip_all, fields(tenant = field::Empty))])));
        assert!(!refused(parse_quote!(#[instrument(skip_all, fields(order.tenant = %KIND))])));
        assert!(!refused(parse_quote!(#[instrument(skip_all, err(level = tenant))])));
    }
}
