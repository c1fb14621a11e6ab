//! Where the compiler points when it reports a mistake in generated code.

use proc_macro2::{Group, Span, TokenStream, TokenTree};

/// For tokens about which a diagnostic should point at `place`. The names among them are still the macro's own.
pub(crate) fn mixed_site_at(place: Span) -> Span {
    Span::mixed_site().located_at(place)
}

/// The same for tokens that are there already, also those in brackets: a call is reported from its first token to its last.
pub(crate) fn located_at(place: Span, tokens: TokenStream) -> TokenStream {
    let moved = tokens.into_iter().map(|mut token| {
        let span = token.span().located_at(place);
        if let TokenTree::Group(group) = &token {
            token = Group::new(group.delimiter(), located_at(place, group.stream())).into();
        }
        token.set_span(span);
        token
    });
    moved.collect()
}
