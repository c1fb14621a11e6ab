//! What may be annotated: an async function that axum can call, taken apart.

use crate::errors::Errors;
use proc_macro2::{Group, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{
    Abi, Attribute, FnArg, PatType, Safety, Signature, Token, Type, TypeInfer, Visibility,
    parse::{ParseStream, Parser},
    spanned::Spanned,
    visit_mut::{self, VisitMut},
};

/// As many arguments as axum's `Handler` takes.
const MOST_ARGUMENTS: usize = 16;

/// A handler function. Its body stays as it was written, so that half-typed code does not take the function away.
pub(crate) struct Handler {
    /// Doc comments and everything else below `#[idempotent]`, but for `debug_handler`.
    pub(crate) attributes: Vec<Attribute>,
    /// `debug_handler` is about the function as the user wrote it.
    pub(crate) debug_handler: Vec<Attribute>,
    pub(crate) visibility: Visibility,
    pub(crate) signature: Signature,
    pub(crate) arguments: Vec<PatType>,
    /// `#![..]` at the top of the body
    pub(crate) inner_attributes: Vec<Attribute>,
    pub(crate) body: Group,
}

/// `None`, with what is wrong reported, for anything that cannot be wrapped.
pub(crate) fn parse(item: TokenStream, errors: &mut Errors) -> Option<Handler> {
    let handler = errors.keep(read.parse2(item))?;
    let mistakes = mistakes(&handler);
    if mistakes.is_empty() {
        return Some(handler);
    }
    mistakes.into_iter().for_each(|mistake| errors.push(mistake));
    None
}

fn read(input: ParseStream) -> syn::Result<Handler> {
    let attributes = input.call(Attribute::parse_outer)?;
    let visibility = input.parse()?;
    let signature = signature(input)?;
    if input.peek(Token![;]) {
        let message = "`#[idempotent]` needs the function's body: put it where the function is implemented";
        return Err(syn::Error::new_spanned(&signature.ident, message));
    }
    let body: Group = input.parse()?;
    let (inner_attributes, body) = inside(body);
    let (debug_handler, attributes) = attributes.into_iter().partition(is_debug_handler);
    let arguments = signature.inputs.iter().filter_map(|argument| match argument {
        FnArg::Typed(typed) => Some(typed.clone()),
        FnArg::Receiver(_) => None,
    });
    let arguments = arguments.collect();
    Ok(Handler { attributes, debug_handler, visibility, signature, arguments, inner_attributes, body })
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
    Err(syn::Error::new_spanned(first, "`#[idempotent]` belongs on an async handler function"))
}

/// Inner attributes are about the whole function, and cannot stand in the block that the body becomes.
fn inside(body: Group) -> (Vec<Attribute>, Group) {
    let parser = |input: ParseStream| Ok((input.call(Attribute::parse_inner)?, input.parse()?));
    match parser.parse2(body.stream()) {
        Ok((attributes, rest)) if !attributes.is_empty() => {
            let mut block = Group::new(body.delimiter(), rest);
            block.set_span(body.span());
            (attributes, block)
        }
        // Also where they do not parse: then it is the compiler that says so, at the user's code.
        _ => (Vec::new(), body),
    }
}

/// `#[debug_handler]` by any path, also inside `#[cfg_attr(debug_assertions, ..)]`.
fn is_debug_handler(attribute: &Attribute) -> bool {
    let path = attribute.path();
    let name = path.segments.last().map(|segment| &segment.ident);
    name.is_some_and(|name| name == "debug_handler")
        || path.is_ident("cfg_attr") && attribute.meta.to_token_stream().to_string().contains("debug_handler")
}

fn mistakes(handler: &Handler) -> Vec<syn::Error> {
    let Signature { constness, asyncness, safety, abi, fn_token, variadic, inputs, .. } = &handler.signature;
    let mut mistakes = Vec::new();
    let mut at = |tokens: &dyn ToTokens, message: &str| mistakes.push(syn::Error::new_spanned(tokens, message));
    for attribute in handler.attributes.iter().filter(|attribute| is_ours(attribute)) {
        at(attribute, "`#[idempotent]` is given twice; keep one of the two");
    }
    if let Some(constness) = constness {
        at(constness, "a handler runs when a request comes: drop `const`");
    }
    if asyncness.is_none() {
        at(fn_token, "a handler is an `async fn`: write `async` before this");
    }
    if let Safety::Unsafe(unsafety) = safety {
        at(unsafety, "axum cannot call an unsafe function: drop this, and put `unsafe` around the lines that need it");
    }
    if let Some(abi) = abi {
        at(abi, "axum calls functions with Rust's own ABI: drop this");
    }
    if let Some(variadic) = variadic {
        at(&variadic.dots, "a handler's arguments are extractors, one for each: drop `...`");
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
                for hidden in impl_traits(&mut ty.clone()) {
                    at(&hidden, "axum cannot know which type this is: name it, or make it a generic parameter");
                }
            }
        }
    }
    if let Some(first_too_many) = inputs.iter().nth(MOST_ARGUMENTS) {
        at(
            first_too_many,
            "a handler takes at most 16 arguments: put some into a tuple, which is an extractor as well",
        );
    }
    mistakes
}

fn is_ours(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|segment| segment.ident == "idempotent")
}

/// Finds each `impl Trait` in a type, and leaves `_` in its place.
pub(crate) fn impl_traits(ty: &mut Type) -> Vec<Type> {
    struct Finder(Vec<Type>);
    impl VisitMut for Finder {
        fn visit_type_mut(&mut self, ty: &mut Type) {
            if matches!(ty, Type::ImplTrait(_)) {
                let inferred = Type::Infer(TypeInfer { attrs: Vec::new(), underscore_token: Token![_](ty.span()) });
                self.0.push(std::mem::replace(ty, inferred));
            } else {
                visit_mut::visit_type_mut(self, ty);
            }
        }
    }
    let mut finder = Finder(Vec::new());
    finder.visit_type_mut(ty);
    finder.0
}
