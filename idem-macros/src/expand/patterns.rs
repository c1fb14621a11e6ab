//! The patterns of arguments. The scope, the key and the handler all see their variables.

use super::mixed_site_at;
use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote_spanned};
use syn::{
    Attribute, FieldPat, Pat, PatIdent, PatReference, Token,
    spanned::Spanned,
    visit_mut::{self, VisitMut},
};

/// What an argument's pattern binds.
#[derive(Default)]
pub(super) struct Bindings {
    pub(super) names: Vec<Ident>,
    by_value: bool,
    by_reference: bool,
    /// Whether a `ref mut` needs a mutable variable to refer to. It does not behind a reference.
    pub(super) mutably: bool,
    behind_reference: bool,
}

impl Bindings {
    pub(super) fn of(pattern: &Pat) -> Self {
        let mut variables = Self::default();
        variables.visit_pat_mut(&mut pattern.clone());
        variables
    }
}

impl VisitMut for Bindings {
    fn visit_pat_ident_mut(&mut self, pattern: &mut PatIdent) {
        self.names.push(pattern.ident.clone());
        if pattern.by_ref.is_some() {
            self.by_reference = true;
            self.mutably |= pattern.mutability.is_some() && !self.behind_reference;
        } else {
            // What can be copied out of a reference can be copied twice.
            self.by_value |= !self.behind_reference;
        }
        visit_mut::visit_pat_ident_mut(self, pattern);
    }

    fn visit_pat_reference_mut(&mut self, pattern: &mut PatReference) {
        let before = std::mem::replace(&mut self.behind_reference, true);
        visit_mut::visit_pat_reference_mut(self, pattern);
        self.behind_reference = before;
    }
}

/// A part of an argument whose variables refer to it, as those of `ref id` do. The handler's future owns the part, so its
/// variables are bound twice: for the scope and the key, and in the future.
pub(super) struct BorrowedPart {
    attributes: Vec<Attribute>,
    /// The variable that holds the part.
    value: Ident,
    pattern: Pat,
}

impl BorrowedPart {
    /// Binds the variables, and mentions each: it may be used in one of the two places only.
    pub(super) fn bound(&self) -> TokenStream {
        let Self { attributes, value, pattern } = self;
        let Bindings { names, .. } = Bindings::of(pattern);
        quote_spanned!(Span::mixed_site()=> #(#attributes)* let #pattern = #value; #(let _ = &#names;)*)
    }
}

/// Takes those parts of arguments out of their patterns whose variables refer to them.
#[derive(Default)]
pub(super) struct BorrowedParts {
    pub(super) parts: Vec<BorrowedPart>,
    attributes: Vec<Attribute>,
}

impl BorrowedParts {
    /// Puts a variable that owns the part in the place of each of them.
    pub(super) fn take_from(&mut self, attributes: &[Attribute], pattern: &mut Pat) {
        self.attributes = attributes.to_vec();
        self.visit_pat_mut(pattern);
    }

    fn take(&mut self, pattern: &mut Pat, mutably: bool) {
        let place = mixed_site_at(pattern.span());
        let value = format_ident!("__r{}", self.parts.len(), span = place);
        // `ref rest @ ..` is as many elements as there are.
        let subpat = match pattern {
            Pat::Ident(PatIdent { subpat, .. }) => subpat.take_if(|(_, inner)| matches!(**inner, Pat::Rest(_))),
            _ => None,
        };
        let mutability = mutably.then(|| Token![mut](place));
        let owner = PatIdent { attrs: Vec::new(), by_ref: None, mutability, ident: value.clone(), subpat };
        let pattern = std::mem::replace(pattern, Pat::Ident(owner));
        self.parts.push(BorrowedPart { attributes: self.attributes.clone(), value, pattern });
    }
}

impl VisitMut for BorrowedParts {
    fn visit_pat_mut(&mut self, pattern: &mut Pat) {
        let Bindings { by_value, by_reference, mutably, .. } = Bindings::of(pattern);
        match (by_reference, by_value) {
            (false, _) => {}
            (true, false) => self.take(pattern, mutably),
            // Each case of an or-pattern binds the same variables.
            (true, true) if matches!(pattern, Pat::Or(_)) => {}
            (true, true) => visit_mut::visit_pat_mut(self, pattern),
        }
    }

    fn visit_field_pat_mut(&mut self, field: &mut FieldPat) {
        let before = self.parts.len();
        visit_mut::visit_field_pat_mut(self, field);
        if self.parts.len() > before {
            field.colon_token.get_or_insert_with(|| Token![:](Span::mixed_site()));
        }
    }
}

#[cfg(test)]
mod tests {
    use quote::quote;
    use syn::parse::Parser;

    use super::*;

    fn pattern(tokens: TokenStream) -> Pat {
        Pat::parse_multi.parse2(tokens).expect("a pattern")
    }

    #[test]
    fn a_variable_behind_a_reference_needs_no_mutable_owner() {
        let bindings = |tokens: TokenStream| {
            let Bindings { names, by_value, by_reference, mutably, .. } = Bindings::of(&pattern(tokens));
            (names.len(), by_value, by_reference, mutably)
        };
        assert_eq!(bindings(quote!((ref mut a, b))), (2, true, true, true));
        assert_eq!(bindings(quote!(&mut (ref mut a, b))), (2, false, true, false));
        assert_eq!(bindings(quote!((&mut (ref mut a, b), c))), (3, true, true, false));
    }

    #[test]
    fn only_what_is_borrowed_is_taken_out() {
        let taken = |tokens: TokenStream| {
            let mut pattern = pattern(tokens);
            let mut borrowed = BorrowedParts::default();
            borrowed.take_from(&[], &mut pattern);
            let parts: Vec<_> =
                borrowed.parts.iter().map(|BorrowedPart { pattern, .. }| quote!(#pattern).to_string()).collect();
            (quote!(#pattern).to_string(), parts)
        };
        assert_eq!(taken(quote!(A(ref a, b))), ("A (__r0 , b)".to_owned(), vec!["ref a".to_owned()]));
        assert_eq!(taken(quote!([a, ref b @ ..])), ("[a , __r0 @ ..]".to_owned(), vec!["ref b".to_owned()]));
        // Each case of an or-pattern binds the same variables, so none of them alone can be taken out.
        assert_eq!(taken(quote!(A(ref a, b) | B(b, ref a))).1, Vec::<String>::new());
    }
}
