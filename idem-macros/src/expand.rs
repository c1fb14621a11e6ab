//! The wrapper: the function that axum calls in place of the user's.
//!
//! All of axum's and the adapter's names that generated code uses are in this file.

use crate::{
    args, errors,
    item::{self, Handler},
    policy::{self, Resolved},
};
use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{
    Expr, GenericParam, Lifetime, PatIdent, PatType, ReturnType, Signature, Type, TypeParamBound, TypeReference,
    spanned::Spanned,
    visit_mut::{self, VisitMut},
};

pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    let ((resolved, handler), mistakes) = errors::collect(|errors| {
        let options = args::parse(options, errors);
        (policy::resolve(&options, errors), item::parse(item.clone(), errors))
    });
    // Whatever was wrong, the function stays: nothing that mentions it gets an error of its own.
    let function = match handler {
        Some(handler) => wrap(&handler, &resolved),
        None => item,
    };
    quote!(#function #mistakes)
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
/// pub async fn create<R: Repo, __S, __M>(mut __call: Call<__S>) -> Response
/// where
///     __S: Clone + Send + Sync + 'static,
///     State<R>: FromRequestParts<__S>,
///     Json<New>: FromRequest<__S, __M>,
/// {
///     let __policy: &'static Policy = const { &Policy::DEFAULT.ttl(..) };
///     if let Err(__response) = __call.open(__policy) { return __response; }
///     let __a0 = match __call.part::<State<R>>().await { Ok(__value) => __value, Err(__response) => return __response };
///     let __a1 = match __call.last::<Json<New>, __M>().await { .. };
///     let __scope = None;
///     __call.run(__policy, __scope, async move { .. }).await
/// }
/// ```
fn wrap(handler: &Handler, Resolved { krate, policy, scope }: &Resolved) -> TokenStream {
    let Handler { attributes, visibility, signature, arguments, inner_attributes, .. } = handler;
    let Signature { asyncness, fn_token, ident, .. } = signature;
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
    let state = Ident::new("__S", Span::mixed_site());
    let marker = Ident::new("__M", Span::mixed_site());

    let mut generics = signature.generics.clone();
    let declared = generics.where_clause.take().into_iter().flat_map(|declared| declared.predicates);
    generics.params.push(GenericParam::Type(state.clone().into()));
    if !arguments.is_empty() {
        generics.params.push(GenericParam::Type(marker.clone().into()));
    }
    let bounds = arguments.iter().map(|argument| argument.bound(&private, &state, &marker));
    let extracted = arguments.iter().map(|argument| argument.extracted(&marker));
    let (scope, body) = scope_and_body(handler, &arguments, scope, &private);
    let run = quote_spanned!(mixed_site_at(output(signature).span())=> __call.run(__policy, __scope, #body).await);
    let policy = quote_spanned!(mixed_site_at(policy.span())=> &#policy);
    let debug_handler = debug_handler(handler);
    let named_traits = named_traits(signature);

    quote_spanned! {Span::mixed_site()=>
        #(#attributes)*
        #visibility #asyncness #fn_token #ident #generics (mut __call: #private::Call<#state>) -> #private::Response
        where
            #(#declared,)*
            #state: ::core::clone::Clone + ::core::marker::Send + ::core::marker::Sync + 'static,
            #(#bounds,)*
        {
            #(#inner_attributes)*
            #debug_handler
            #named_traits
            let __policy: &'static #krate::Policy = const { #policy };
            if let ::core::result::Result::Err(__response) = __call.open(__policy) {
                return __response;
            }
            #(#extracted)*
            #scope
            #run
        }
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
    /// A wrong extractor is reported at this bound, so all of it stands where the type does.
    fn bound(&self, private: &TokenStream, state: &Ident, marker: &Ident) -> TokenStream {
        let ty = &self.written.ty;
        let bound = if self.is_last {
            quote!(#private::FromRequest<#state, #marker>)
        } else {
            quote!(#private::FromRequestParts<#state>)
        };
        let bound = located_at(ty.span(), bound);
        quote!(#ty: #bound)
    }

    fn extracted(&self, marker: &Ident) -> TokenStream {
        let Self { written: PatType { ty, .. }, value, is_last } = self;
        let extractor = match (is_last, has_lifetimes(ty)) {
            (false, false) => quote!(part::<#ty>),
            (false, true) => quote!(part_in_a_box::<#ty>),
            (true, false) => quote!(last::<#ty, #marker>),
            (true, true) => quote!(last_in_a_box::<#ty, #marker>),
        };
        quote_spanned! {Span::mixed_site()=>
            let #value = match __call.#extractor().await {
                ::core::result::Result::Ok(__value) => __value,
                ::core::result::Result::Err(__response) => return __response,
            };
        }
    }

    fn binding(&self) -> TokenStream {
        let Self { written: PatType { attrs, pat, ty, .. }, value, .. } = self;
        quote_spanned!(Span::mixed_site()=> #(#attrs)* let #pat: #ty = #value;)
    }

    /// The variables of the pattern, or the whole value where there are none.
    fn owned(&self) -> Vec<Ident> {
        struct Names(Vec<Ident>);
        impl VisitMut for Names {
            fn visit_pat_ident_mut(&mut self, pattern: &mut PatIdent) {
                self.0.push(pattern.ident.clone());
                visit_mut::visit_pat_ident_mut(self, pattern);
            }
        }
        let mut names = Names(Vec::new());
        names.visit_pat_mut(&mut self.written.pat.clone());
        if names.0.is_empty() { vec![self.value.clone()] } else { names.0 }
    }
}

/// What is evaluated before the body runs, down to `__scope`, and the future that runs the body.
///
/// The future owns every argument, used or not: a guard among them lives as long as the body, and they go in the order
/// in which they would in the user's own function.
fn scope_and_body(
    handler: &Handler,
    arguments: &[Argument],
    scope: &[Expr],
    private: &TokenStream,
) -> (TokenStream, TokenStream) {
    let bindings = arguments.iter().map(Argument::binding);
    let values = arguments.iter().map(|argument| &argument.value);
    let (before, owned) = if scope.is_empty() {
        (
            quote_spanned!(Span::mixed_site()=> let __scope = ::core::option::Option::None;),
            // What an async function does with its arguments.
            quote_spanned!(Span::mixed_site()=> #(let #values = #values; #bindings)*),
        )
    } else {
        // The scope needs the arguments bound before there is a body, so here the body takes the variables. What a
        // pattern leaves behind, as the second half in `(user, _)`, stays with the request.
        let owned = arguments.iter().flat_map(Argument::owned).rev();
        let scope = scope.iter().map(|part| quote_spanned!(mixed_site_at(part.span())=> &(#part)));
        (
            quote_spanned! {Span::mixed_site()=>
                #(#bindings)*
                let __scope = ::core::option::Option::Some(#private::scope(&[#(#scope),*]));
            },
            quote_spanned!(Span::mixed_site()=> #(let _ = &#owned;)*),
        )
    };
    let Handler { signature, body, .. } = handler;
    let output = output(signature);
    let future = quote_spanned! {mixed_site_at(output.span())=>
        async move {
            #owned
            // Never runs: it says what the body returns before the body is looked at, so that `?` knows what to convert
            // into and a wrong type is reported where it is.
            #[allow(unreachable_code, clippy::diverging_sub_expression, clippy::empty_loop, clippy::needless_return)]
            if false {
                let __output: #output = loop {};
                return __output;
            }
            // The block's edition is the user's. The parentheses keep `unused_braces` away from a body of one expression.
            (#body)
        }
    };
    (before, future)
}

/// What the body returns; `_` for what the signature leaves to inference.
fn output(signature: &Signature) -> TokenStream {
    match &signature.output {
        ReturnType::Type(_, ty) => {
            let mut ty = ty.clone();
            item::impl_traits(&mut ty);
            ty.into_token_stream()
        }
        ReturnType::Default => quote_spanned!(signature.ident.span()=> ()),
    }
}

/// Names the traits of each `impl Trait` in the return type once more. The wrapper returns a response, so the import of a
/// trait that stands nowhere else, as `IntoResponse` often does, would be reported as unused.
fn named_traits(signature: &Signature) -> Option<TokenStream> {
    let ReturnType::Type(_, ty) = &signature.output else { return None };
    let hidden = item::impl_traits(&mut ty.clone()).into_iter().filter_map(|hidden| match hidden {
        Type::ImplTrait(mut hidden) => {
            let bounds = hidden.bounds.into_iter().filter(|bound| matches!(bound, TypeParamBound::Trait(_)));
            hidden.bounds = bounds.collect();
            Some(hidden)
        }
        _ => None,
    });
    // A function within a function knows nothing of the generics around it, those of an `impl` block among them; so only
    // traits without arguments are named.
    let own = |bound: &TypeParamBound| match bound {
        TypeParamBound::Trait(bound) => bound.path.segments.iter().all(|segment| {
            segment.arguments.is_none()
                && segment.ident != "Self"
                && !signature.generics.params.iter().any(|param| is_named(param, &segment.ident))
        }),
        _ => true,
    };
    let hidden: Vec<_> = hidden.filter(|hidden| hidden.bounds.iter().all(own)).collect();
    if hidden.is_empty() {
        return None;
    }
    Some(quote_spanned! {Span::mixed_site()=>
        #[allow(dead_code, clippy::all, clippy::pedantic, clippy::nursery, clippy::restriction)]
        const _: () = {
            fn __named(#(_: #hidden),*) {}
        };
    })
}

/// Whether a reference or a lifetime is written in the type.
fn has_lifetimes(ty: &Type) -> bool {
    struct Found(bool);
    impl VisitMut for Found {
        fn visit_type_reference_mut(&mut self, _: &mut TypeReference) {
            self.0 = true;
        }
        fn visit_lifetime_mut(&mut self, _: &mut Lifetime) {
            self.0 = true;
        }
    }
    let mut found = Found(false);
    found.visit_type_mut(&mut ty.clone());
    found.0
}

fn is_named(param: &GenericParam, ident: &Ident) -> bool {
    match param {
        GenericParam::Type(param) => param.ident == *ident,
        GenericParam::Const(param) => param.ident == *ident,
        GenericParam::Lifetime(param) => param.lifetime.ident == *ident,
    }
}

/// For tokens about which a diagnostic should point at `place`. The names among them are still the macro's own.
fn mixed_site_at(place: Span) -> Span {
    Span::mixed_site().located_at(place)
}

/// The same for tokens that are there already.
fn located_at(place: Span, tokens: TokenStream) -> TokenStream {
    let moved = tokens.into_iter().map(|mut token| {
        token.set_span(token.span().located_at(place));
        token
    });
    moved.collect()
}

/// `debug_handler` refuses generic functions, which the wrapper is, so it gets a copy of what the user wrote. The copy is
/// out of the body's sight, and of that of lints, which have seen the original.
fn debug_handler(Handler { debug_handler, signature, body, .. }: &Handler) -> Option<TokenStream> {
    if debug_handler.is_empty() {
        return None;
    }
    Some(quote_spanned! {Span::mixed_site()=>
        #[allow(warnings, clippy::all, clippy::pedantic, clippy::nursery, clippy::restriction)]
        const _: () = {
            #(#debug_handler)*
            #signature #body
        };
    })
}

#[cfg(test)]
mod tests;
