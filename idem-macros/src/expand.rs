//! The generated function, which axum calls instead of the user's.
//!
//! All names of axum and of the adapter that generated code uses are in this folder.

mod output;
mod patterns;
mod plain;

use crate::{
    errors, function,
    handler::{self, Handler},
    options::{self, OptionName, Target, WrittenOption},
    resolve::{self, ResolvedOptions},
    spans::{located_at, mixed_site_at},
};
use patterns::{Bindings, BorrowedPart, BorrowedParts};
use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use std::mem;
use syn::{
    Expr, GenericParam, Pat, PatIdent, PatType, Signature,
    ext::IdentExt,
    spanned::Spanned,
    visit_mut::{self, VisitMut},
};

pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    let (written, unreadable) = errors::collect(|errors| options::parse(options.clone(), Target::of(&options), errors));
    if written.iter().any(|option| option.name == OptionName::Engine) {
        return plain_function(&written, &quote!(::idem_axum), item, &unreadable);
    }
    let (handler, wrong_handler) = errors::collect(|errors| handler::parse(item.clone(), handler::mistakes, errors));
    let (resolved, wrong_options) = errors::collect(|errors| {
        resolve::resolve(&written, handler.as_ref().map(|handler| handler.arguments.as_slice()), errors)
    });
    // Whatever was wrong, the function is emitted: nothing that mentions it gets an error too.
    let function = match handler {
        Some(handler) => {
            let parameters = Parameters::new(&[&options, &item]);
            wrap(&handler, &resolved, &parameters)
        }
        None => item,
    };
    quote!(#function #unreadable #wrong_options #wrong_handler)
}

/// For a crate without handlers: `engine` must be written.
pub(crate) fn expand_function(options: TokenStream, item: TokenStream) -> TokenStream {
    let (written, unreadable) = errors::collect(|errors| options::parse(options, Target::Function, errors));
    plain_function(&written, &quote!(::idem_runtime), item, &unreadable)
}

fn plain_function(
    written: &[WrittenOption],
    home: &TokenStream,
    item: TokenStream,
    unreadable: &TokenStream,
) -> TokenStream {
    let (parsed, wrong_function) = errors::collect(|errors| handler::parse(item.clone(), function::mistakes, errors));
    let (resolved, wrong_options) = errors::collect(|errors| function::resolve(written, parsed.as_ref(), home, errors));
    let expanded = match (parsed, resolved) {
        (Some(parsed), Some(resolved)) => plain::wrap(&parsed, &resolved),
        // Without its expressions, lints about arguments would be noise.
        _ => quote!(#[allow(unused)] #item),
    };
    quote!(#expanded #unreadable #wrong_options #wrong_function)
}

/// The type parameters of the generated function, after the user's.
struct Parameters {
    /// What the router's state is.
    state: Ident,
    /// Whether the last argument takes the body: axum's marker type, which it infers.
    body: Ident,
}

impl Parameters {
    /// Type parameters have no hygiene, so a name that the user's code mentions is not taken.
    fn new(users: &[&TokenStream]) -> Self {
        let parameter = |name: &str| {
            let mut name = name.to_owned();
            while users.iter().any(|tokens| mentions(tokens, &name)) {
                name.push('_');
            }
            Ident::new(&name, Span::mixed_site())
        };
        Self { state: parameter("RouterState"), body: parameter("BodyVia") }
    }
}

/// Input:
///
/// ```ignore
/// pub async fn create<R: Repo>(State(repo): State<R>, Json(new): Json<New>) -> Result<Json<Order>, AppError> { .. }
/// ```
///
/// Output:
///
/// ```ignore
/// pub async fn create<R: Repo, RouterState, BodyVia>(__call: Call<RouterState>) -> Response
/// where
///     RouterState: Clone + Send + Sync + 'static,
///     State<R>: FromRequestParts<RouterState>,
///     Json<New>: FromRequest<RouterState, BodyVia>,
/// {
///     let mut __call = match __call.open(const { &Policy::declared_at(Policy::DEFAULT.ttl(..), "shop::create") }) {
///         Ok(__call) => __call,
///         Err(__response) => return __response,
///     };
///     let __a0 = match __call.part::<State<R>>().await { .. };
///     let (__a1, __call) = match __call.last::<Json<New>, BodyVia>().await { .. };
///     let __scope = None;
///     __call.run(__scope, move || async move { .. }).await
/// }
/// ```
fn wrap(handler: &Handler, resolved: &ResolvedOptions, parameters: &Parameters) -> TokenStream {
    let ResolvedOptions { krate, policy, key, .. } = resolved;
    let Handler { attributes, visibility, signature, arguments, inner_attributes, .. } = handler;
    let Signature { asyncness, fn_token, ident, .. } = signature;
    let Parameters { state, body } = parameters;
    let arguments: Vec<_> = arguments
        .iter()
        .enumerate()
        .map(|(position, written)| Argument {
            written,
            value: format_ident!("__a{position}", span = Span::mixed_site()),
            is_last: position + 1 == arguments.len(),
        })
        .collect();
    let private = quote!(#krate::private);

    let mut generics = signature.generics.clone();
    let declared = generics.where_clause.take().into_iter().flat_map(|declared| declared.predicates);
    // The handler's future is `'static`, and so is all that is in it. Clippy reports a lifetime that has bounds in two places.
    let lifetimes: Vec<_> = generics
        .lifetimes_mut()
        .map(|parameter| {
            let (name, bounds) = (&parameter.lifetime, mem::take(&mut parameter.bounds).into_iter());
            quote_spanned!(Span::mixed_site()=> #name: #(#bounds +)* 'static)
        })
        .collect();
    generics.params.push(GenericParam::Type(state.clone().into()));
    if !arguments.is_empty() {
        generics.params.push(GenericParam::Type(body.clone().into()));
    }
    let bounds = arguments.iter().map(|argument| argument.required(&private, parameters));
    let policy = policy_of(ident, krate, policy);
    let opened = if arguments.len() > 1 {
        quote_spanned!(Span::mixed_site()=> mut __call)
    } else {
        quote_spanned!(Span::mixed_site()=> __call)
    };
    let opened = or_return(&opened, &quote_spanned!(Span::mixed_site()=> __call.open(#policy)));
    let extracted = arguments.iter().map(|argument| argument.extracted(&private, body));
    // A handler without arguments takes nothing of the request, as `()` does.
    let nothing = arguments.is_empty().then(|| {
        or_return(
            &quote_spanned!(Span::mixed_site()=> ((), __call)),
            &quote_spanned!(Span::mixed_site()=> __call.last::<(), _>().await),
        )
    });
    let (before, closure) = scope_and_closure(handler, &arguments, resolved, &private);
    let with_key = key.as_ref().map(|_| quote_spanned!(Span::mixed_site()=> .with_key(__key)));
    let run = quote_spanned!(mixed_site_at(output::span(signature))=> __call #with_key.run(__scope, #closure).await);
    let debug_handler = debug_handler(handler);

    quote_spanned! {Span::mixed_site()=>
        #(#attributes)*
        #visibility #asyncness #fn_token #ident #generics (__call: #private::Call<#state>) -> #private::Response
        where
            #(#declared,)*
            #(#lifetimes,)*
            #state: ::core::clone::Clone + ::core::marker::Send + ::core::marker::Sync + 'static,
            #(#bounds,)*
        {
            #(#inner_attributes)*
            #debug_handler
            #opened
            #(#extracted)*
            #nothing
            #before
            #run
        }
    }
}

/// The policy with the handler's path, as a reference to a constant. A policy of another type is reported at `policy`.
fn policy_of(handler: &Ident, krate: &TokenStream, policy: &TokenStream) -> TokenStream {
    let name = handler.unraw().to_string();
    quote_spanned! {Span::mixed_site()=>
        const { &#krate::Policy::declared_at(#policy, ::core::concat!(::core::module_path!(), "::", #name)) }
    }
}

/// Binds what a step of the call returns, or returns its response.
fn or_return(bound: &TokenStream, step: &TokenStream) -> TokenStream {
    quote_spanned! {Span::mixed_site()=>
        let #bound = match #step {
            ::core::result::Result::Ok(__value) => __value,
            ::core::result::Result::Err(__response) => return __response,
        };
    }
}

/// One argument of the user's function.
struct Argument<'a> {
    written: &'a PatType,
    /// The variable that holds what was extracted.
    value: Ident,
    /// The last one may take the request's body.
    is_last: bool,
}

impl Argument<'_> {
    /// A wrong extractor is reported at this bound, so all of it is located at the type.
    fn required(&self, private: &TokenStream, Parameters { state, body }: &Parameters) -> TokenStream {
        let ty = &self.written.ty;
        let bound = if self.is_last {
            quote!(#private::FromRequest<#state, #body>)
        } else {
            quote!(#private::FromRequestParts<#state>)
        };
        let bound = located_at(ty.span(), bound);
        quote!(#ty: #bound)
    }

    fn extracted(&self, private: &TokenStream, body: &Ident) -> TokenStream {
        let Self { written: PatType { ty, .. }, value, is_last } = self;
        if *is_last {
            or_return(
                &quote_spanned!(Span::mixed_site()=> (#value, __call)),
                &quote_spanned!(Span::mixed_site()=> __call.last::<#ty, #body>().await),
            )
        } else {
            // A method of the user's that takes any `self` would come before one that takes `&mut self`.
            let part = quote_spanned!(Span::mixed_site()=> #private::OpenCall::part::<#ty>(&mut __call).await);
            or_return(&value.to_token_stream(), &part)
        }
    }

    fn bound(&self, pattern: &Pat) -> TokenStream {
        let Self { written: PatType { attrs, ty, .. }, value, .. } = self;
        quote_spanned!(Span::mixed_site()=> #(#attrs)* let #pattern: #ty = #value;)
    }

    /// The variable is moved first, and lives as long as what the pattern binds.
    fn moved_and_bound(&self, pattern: &Pat) -> TokenStream {
        let value = &self.value;
        let mutability = Bindings::of(pattern).mutably.then(|| quote_spanned!(Span::mixed_site()=> mut));
        let bound = self.bound(pattern);
        quote_spanned!(Span::mixed_site()=> let #mutability #value = #value; #bound)
    }

    /// The pattern as it is bound. A variable such as `_guard`, which the user's code does not mention, becomes one of
    /// generated code: clippy would report that it is bound without effect, or mentioned.
    fn pattern(&self, users: &TokenStream) -> Pat {
        struct Unmentioned<'a>(&'a TokenStream);
        impl VisitMut for Unmentioned<'_> {
            fn visit_pat_ident_mut(&mut self, pattern: &mut PatIdent) {
                let name = pattern.ident.to_string();
                if name.starts_with('_') && !mentions(self.0, &name) {
                    pattern.ident.set_span(mixed_site_at(pattern.ident.span()));
                }
                visit_mut::visit_pat_ident_mut(self, pattern);
            }
        }
        let mut pattern = (*self.written.pat).clone();
        Unmentioned(users).visit_pat_mut(&mut pattern);
        pattern
    }

    /// The variables of the pattern, or the whole value if there are none.
    fn owned(&self, pattern: &Pat) -> Vec<Ident> {
        let Bindings { names, .. } = Bindings::of(pattern);
        if names.is_empty() { vec![self.value.clone()] } else { names }
    }
}

/// What is evaluated before the handler runs, down to `__scope` and `__key`, and the closure that makes the handler's future.
///
/// The future owns every argument, used or not: a guard among them lives as long as the handler runs, and they are
/// dropped in the order in which they would be in the user's own function.
fn scope_and_closure(
    handler: &Handler,
    arguments: &[Argument],
    ResolvedOptions { scope, key, .. }: &ResolvedOptions,
    private: &TokenStream,
) -> (TokenStream, TokenStream) {
    let Handler { signature, block, .. } = handler;
    let users = quote!(#(#scope)* #key #block);
    let mut patterns: Vec<_> = arguments.iter().map(|argument| argument.pattern(&users)).collect();
    let (before, owned) = if scope.is_empty() && key.is_none() {
        let bindings = arguments.iter().zip(&patterns).map(|(argument, pattern)| argument.moved_and_bound(pattern));
        (
            quote_spanned!(Span::mixed_site()=> let __scope = ::core::option::Option::None;),
            // What an async function does with its arguments.
            quote_spanned!(Span::mixed_site()=> #(#bindings)*),
        )
    } else {
        // The scope and the key need the arguments bound before the handler runs, so the handler takes the variables. What a
        // pattern does not bind, as the second half of `(user, _)`, is dropped with the request.
        let mut borrowed = BorrowedParts::default();
        for (argument, pattern) in arguments.iter().zip(&mut patterns) {
            borrowed.take_from(&argument.written.attrs, pattern);
        }
        let borrowed: Vec<_> = borrowed.parts.iter().map(BorrowedPart::bound).collect();
        let bindings = arguments.iter().zip(&patterns).map(|(argument, pattern)| argument.bound(pattern));
        let owned = arguments.iter().zip(&patterns).flat_map(|(argument, pattern)| argument.owned(pattern)).rev();
        let parts = scope.iter().map(|part| quote_spanned!(mixed_site_at(part.span())=> &(#part)));
        let scope = if scope.is_empty() {
            quote_spanned!(Span::mixed_site()=> ::core::option::Option::None)
        } else {
            quote_spanned!(Span::mixed_site()=> ::core::option::Option::Some(#private::scope(&[#(#parts),*])))
        };
        let key = key.as_ref().map(|key| key_of(key, private));
        (
            quote_spanned! {Span::mixed_site()=>
                #(#bindings)*
                #(#borrowed)*
                let __scope = #scope;
                #key
            },
            quote_spanned!(Span::mixed_site()=> #(let _ = &#owned;)* #(#borrowed)*),
        )
    };
    let output = output::stated(signature, private);
    let closure = quote_spanned! {mixed_site_at(output::span(signature))=>
        move || async move {
            #owned
            #output
            // The block's edition is the user's. The parentheses keep `unused_braces` away from a block of one expression.
            (#block)
        }
    };
    (before, closure)
}

/// Evaluates `key` down to `__key`. The traits are imported out of sight of the user's expression.
fn key_of(key: &Expr, private: &TokenStream) -> TokenStream {
    let called = quote_spanned!(mixed_site_at(key.span())=> (&#private::KeyExpression(__value)).expressed_key());
    quote_spanned! {Span::mixed_site()=>
        let __key = match &(#key) {
            __value => {
                use #private::{KeyOfOption as _, KeyOfText as _};
                #called
            }
        };
    }
}

/// Whether the tokens mention the name, also in a string such as that of `format!("{name}")`.
fn mentions(tokens: &TokenStream, name: &str) -> bool {
    tokens.clone().into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == name,
        TokenTree::Group(group) => mentions(&group.stream(), name),
        TokenTree::Literal(literal) => literal.to_string().contains(name),
        TokenTree::Punct(_) => false,
    })
}

/// `debug_handler` refuses generic functions, so it gets a copy of what the user wrote. The copy is out of the handler's
/// scope. Lints are off in it, since they see the original, and it is mentioned, which `forbid(dead_code)` asks for.
fn debug_handler(Handler { debug_handler, signature, block, .. }: &Handler) -> Option<TokenStream> {
    if debug_handler.is_empty() {
        return None;
    }
    let name = &signature.ident;
    Some(quote_spanned! {Span::mixed_site()=>
        #[allow(warnings)]
        const _: () = {
            #(#debug_handler)*
            #signature #block
            let _ = #name;
        };
    })
}

#[cfg(test)]
mod tests;
