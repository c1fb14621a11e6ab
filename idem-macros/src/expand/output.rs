//! The handler's return type, stated inside its future.
//!
//! An async block has no return type to write, so a statement before the handler's block returns a value of the type: `?`
//! knows what to convert into, a wrong type is reported in the handler, and what only the return type determines is
//! inferred from it.

use crate::spans::mixed_site_at;
use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote_spanned};
use syn::{
    AngleBracketedGenericArguments, AssocType, Expr, GenericArgument, GenericParam, Lifetime, Path, PathArguments,
    ReturnType, Signature, Token, TraitBound, Type, TypeImplTrait, TypeInfer, TypeParamBound,
    punctuated::Punctuated,
    spanned::Spanned,
    visit_mut::{self, VisitMut},
};

/// A statement that never returns, but has the handler's return type. No lint knows that it never does.
pub(super) fn stated(signature: &Signature, private: &TokenStream) -> TokenStream {
    let place = mixed_site_at(span(signature));
    let value = match &signature.output {
        ReturnType::Type(_, ty) if has_impl_trait(ty) => return stated_with_bounds(signature, ty, private),
        ReturnType::Type(_, ty) => quote_spanned!(place=> #private::never::<#ty>()),
        ReturnType::Default => quote_spanned!(place=> #private::never::<()>()),
    };
    returned(place, &value)
}

/// What diagnostics about the return type point at.
pub(super) fn span(signature: &Signature) -> Span {
    match &signature.output {
        ReturnType::Type(_, ty) => ty.span(),
        ReturnType::Default => signature.ident.span(),
    }
}

fn returned(place: Span, value: &TokenStream) -> TokenStream {
    quote_spanned! {place=>
        if let ::core::option::Option::Some(__output) = #value {
            return __output;
        }
    }
}

/// A type such as `Sse<impl Stream<Item = Event>>` is stated by a generic function, so that inference sees the bounds:
///
/// ```ignore
/// fn __output<__T0: Stream<Item = __T1>, __T1>() -> Option<Sse<__T0>> { None }
/// if let Some(__output) = __output::<_, Event>() { return __output; }
/// ```
///
/// A function in a function cannot name the generics around it, those of an `impl` block among them. So every type without
/// `impl Trait`, as `Event` here, is a parameter too.
fn stated_with_bounds(signature: &Signature, ty: &Type, private: &TokenStream) -> TokenStream {
    let place = mixed_site_at(span(signature));
    let mut generalized = ty.clone();
    let mut generalizer = Generalizer { signature, lifetimes: Vec::new(), types: Vec::new(), arguments: Vec::new() };
    if generalizer.generalize(&mut generalized).is_none() {
        let mut inferred = ty.clone();
        infer_impl_traits(&mut inferred);
        return returned(place, &quote_spanned!(place=> #private::never::<#inferred>()));
    }
    let Generalizer { lifetimes, types, arguments, .. } = generalizer;
    let statement = returned(place, &quote_spanned!(place=> __output::<#(#arguments),*>()));
    quote_spanned! {place=>
        {
            fn __output<#(#lifetimes,)* #(#types),*>() -> ::core::option::Option<#generalized> {
                ::core::option::Option::None
            }
            #statement
        }
    }
}

/// The parameters of the generic function, and what it is called with.
struct Generalizer<'a> {
    signature: &'a Signature,
    lifetimes: Vec<Lifetime>,
    /// Each with its bounds.
    types: Vec<TokenStream>,
    arguments: Vec<Type>,
}

impl Generalizer<'_> {
    /// Replaces what the generic function cannot name by parameters. `None` if that is not possible.
    fn generalize(&mut self, ty: &mut Type) -> Option<()> {
        let generalized = match ty {
            Type::ImplTrait(hidden) => self.hidden(hidden.impl_token.span, &hidden.bounds),
            _ if !has_impl_trait(ty) => self.parameter(ty.clone(), &[]),
            Type::Paren(inner) => return self.generalize(&mut inner.elem),
            Type::Group(inner) => return self.generalize(&mut inner.elem),
            Type::Tuple(tuple) => return tuple.elems.iter_mut().try_for_each(|elem| self.generalize(elem)),
            Type::Path(path) if path.qself.is_none() => return self.generalize_path(&mut path.path),
            _ => return None,
        };
        *ty = generalized;
        Some(())
    }

    fn generalize_path(&mut self, path: &mut Path) -> Option<()> {
        if path.segments.first()?.ident == "Self" {
            return None;
        }
        path.segments.iter_mut().try_for_each(|segment| match &mut segment.arguments {
            PathArguments::None => Some(()),
            PathArguments::AngleBracketed(arguments) => self.generalize_arguments(arguments),
            PathArguments::Parenthesized(_) => None,
        })
    }

    fn generalize_arguments(&mut self, arguments: &mut AngleBracketedGenericArguments) -> Option<()> {
        arguments.args.iter_mut().try_for_each(|argument| match argument {
            GenericArgument::Type(ty) if self.may_be_constant(ty) => None,
            GenericArgument::Type(ty) | GenericArgument::AssocType(AssocType { generics: None, ty, .. }) => {
                self.generalize(ty)
            }
            GenericArgument::Lifetime(lifetime) => {
                if lifetime.ident != "static" {
                    *lifetime = Lifetime::new(&format!("'__l{}", self.lifetimes.len()), Span::mixed_site());
                    self.lifetimes.push(lifetime.clone());
                }
                Some(())
            }
            GenericArgument::Const(Expr::Lit(_)) => Some(()),
            GenericArgument::Constraint(constraint) if constraint.generics.is_none() => {
                *argument = GenericArgument::AssocType(AssocType {
                    ident: constraint.ident.clone(),
                    generics: None,
                    eq_token: Token![=](constraint.colon_token.span),
                    ty: self.hidden(constraint.ident.span(), &constraint.bounds),
                });
                Some(())
            }
            _ => None,
        })
    }

    /// A parameter in place of `impl Trait`, with those bounds that the generic function can name. Lifetimes do not take
    /// part in inference.
    fn hidden(&mut self, place: Span, bounds: &Punctuated<TypeParamBound, Token![+]>) -> Type {
        let bounds: Vec<_> = bounds.iter().filter_map(|bound| self.bound(bound)).collect();
        self.parameter(inferred(mixed_site_at(place)), &bounds)
    }

    fn bound(&mut self, bound: &TypeParamBound) -> Option<TraitBound> {
        let TypeParamBound::Trait(bound @ TraitBound { lifetimes: None, maybe: None, .. }) = bound else { return None };
        let before = (self.lifetimes.len(), self.types.len());
        let mut bound = bound.clone();
        if self.generalize_path(&mut bound.path).is_none() {
            self.lifetimes.truncate(before.0);
            self.types.truncate(before.1);
            self.arguments.truncate(before.1);
            return None;
        }
        Some(bound)
    }

    fn parameter(&mut self, argument: Type, bounds: &[TraitBound]) -> Type {
        let name = format_ident!("__T{}", self.types.len(), span = Span::mixed_site());
        self.types.push(quote_spanned!(Span::mixed_site()=> #name: #(#bounds)+*));
        self.arguments.push(argument);
        Type::Verbatim(name.into_token_stream())
    }

    /// A constant as a generic argument looks like a type. It is known by its name.
    fn may_be_constant(&self, ty: &Type) -> bool {
        let Type::Path(path) = ty else { return false };
        let Some(name) = path.path.get_ident() else { return false };
        let declared = |parameter: &GenericParam| matches!(parameter, GenericParam::Const(it) if it.ident == *name);
        let text = name.to_string();
        let shouted = text.len() > 1 && !text.contains(|character: char| character.is_lowercase());
        shouted || self.signature.generics.params.iter().any(declared)
    }
}

fn has_impl_trait(ty: &Type) -> bool {
    infer_impl_traits(&mut ty.clone())
}

/// Replaces each `impl Trait` by `_`. Returns whether there was one.
fn infer_impl_traits(ty: &mut Type) -> bool {
    struct Inferring(bool);
    impl VisitMut for Inferring {
        fn visit_type_mut(&mut self, ty: &mut Type) {
            if let Type::ImplTrait(TypeImplTrait { impl_token, .. }) = ty {
                self.0 = true;
                *ty = inferred(impl_token.span);
            } else {
                visit_mut::visit_type_mut(self, ty);
            }
        }
    }
    let mut inferring = Inferring(false);
    inferring.visit_type_mut(ty);
    inferring.0
}

fn inferred(span: Span) -> Type {
    Type::Infer(TypeInfer { attrs: Vec::new(), underscore_token: Token![_](span) })
}
