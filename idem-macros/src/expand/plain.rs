//! A plain function, whose block runs at most once for its key.

use super::{
    Argument, output,
    patterns::{BorrowedPart, BorrowedParts},
};
use crate::{function::FunctionOptions, handler::Handler, spans::mixed_site_at, value};
use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::{Expr, FnArg, Lit, spanned::Spanned};

/// Input:
///
/// ```ignore
/// async fn ship(app: App, order: OrderPaid) -> Result<Receipt, ShipError> { .. }
/// ```
///
/// Output:
///
/// ```ignore
/// async fn ship(app: App, order: OrderPaid) -> Result<Receipt, ShipError> {
///     let __once = {
///         let __engine: &Idempotency = &(app.idempotency);
///         __engine.once("ship", text(&(order.id))).ttl(..)
///     };
///     __once.run(move || async move { .. }).await
/// }
/// ```
///
/// The block's future owns every argument that has a name, used or not: a guard among them lives as long as the block runs. One that is
/// `_` stays with the caller, and so may borrow.
pub(super) fn wrap(function: &Handler, options: &FunctionOptions) -> TokenStream {
    let Handler { attributes, debug_handler, visibility, signature, inner_attributes, block, .. } = function;
    let FunctionOptions { krate, engine, scope, key, fingerprint, settings } = options;
    let private = quote!(#krate::private);
    let scope = match value::bare(scope) {
        Expr::Lit(literal) if matches!(literal.lit, Lit::Str(_) | Lit::ByteStr(_)) => quote!(#literal),
        scope => text(scope, &private),
    };
    let key = text(key, &private);
    let fingerprint = fingerprint.as_ref().map(|value| match value::bare(value) {
        // The parts are borrowed, as one value is.
        Expr::Tuple(tuple) => {
            let parts = tuple.elems.iter();
            quote_spanned!(Span::mixed_site()=> .fingerprint(&(#(&(#parts),)*)))
        }
        value => quote_spanned!(Span::mixed_site()=> .fingerprint(&(#value))),
    });
    let receiver = signature.receiver().map(|receiver| {
        let this = &receiver.self_token;
        quote_spanned!(Span::mixed_site()=> let _ = &#this;)
    });
    let (mut signature, mut borrowed) = (signature.clone(), BorrowedParts::default());
    for argument in &mut signature.inputs {
        if let FnArg::Typed(argument) = argument {
            borrowed.take_from(&argument.attrs, &mut argument.pat);
        }
    }
    let borrowed: Vec<_> = borrowed.parts.iter().map(BorrowedPart::bound).collect();
    let arguments = signature.inputs.iter().filter_map(|argument| match argument {
        FnArg::Typed(typed) => Some(typed),
        FnArg::Receiver(_) => None,
    });
    let owned = arguments.rev().flat_map(|written| {
        let unnamed = format_ident!("__unnamed", span = Span::mixed_site());
        let argument = Argument { written, value: unnamed.clone(), is_last: false };
        argument.owned(&written.pat).into_iter().filter(move |name| *name != unnamed)
    });
    let output = output::stated(&signature, &private);
    let engine = quote_spanned!(mixed_site_at(engine.span())=> &(#engine));
    let settings = quote_spanned!(Span::mixed_site()=> #settings #fingerprint);
    // A wrong return type is reported at it.
    let run = quote_spanned! {mixed_site_at(output::span(&signature))=>
        __once.run(move || async move {
            #(let _ = &#owned;)*
            #receiver
            #(#borrowed)*
            #output
            (#block)
        }).await
    };
    quote_spanned! {Span::mixed_site()=>
        #(#debug_handler)*
        #(#attributes)*
        #visibility #signature {
            #(#inner_attributes)*
            let __once = {
                #(#borrowed)*
                let __engine: &#krate::Idempotency = #engine;
                __engine.once(#scope, #key) #settings
            };
            #run
        }
    }
}

fn text(value: &Expr, private: &TokenStream) -> TokenStream {
    // A value that is no text is reported at it.
    quote_spanned!(mixed_site_at(value.span())=> #private::text(&(#value)))
}
