//! Expressions over the handler's arguments, the values of `key` and of `scope`.

use crate::value;
use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::{
    Expr, ExprPath, PatIdent, PatType, Type,
    ext::IdentExt,
    visit_mut::{self, VisitMut},
};

/// The variables that the handler's arguments bind, without `r#`: a format string has no raw names.
pub(crate) struct Variables(Vec<String>);

impl Variables {
    pub(crate) fn of(arguments: &[PatType]) -> Self {
        struct Names(Vec<String>);
        impl VisitMut for Names {
            fn visit_pat_ident_mut(&mut self, pattern: &mut PatIdent) {
                self.0.push(pattern.ident.unraw().to_string());
                visit_mut::visit_pat_ident_mut(self, pattern);
            }
        }
        let mut names = Names(Vec::new());
        for argument in arguments {
            names.visit_pat_mut(&mut argument.pat.clone());
        }
        Self(names.0)
    }

    /// Returns whether an expression mentions one of the variables, also as in `format!("{user}")`.
    pub(crate) fn are_in(&self, value: &Expr) -> bool {
        struct Mentioned<'a>(&'a Variables, bool);
        impl VisitMut for Mentioned<'_> {
            fn visit_expr_path_mut(&mut self, path: &mut ExprPath) {
                self.1 |= path.path.get_ident().is_some_and(|name| self.0.has(name));
            }
            fn visit_macro_mut(&mut self, invoked: &mut syn::Macro) {
                self.1 |= self.0.are_in_tokens(&invoked.tokens);
            }
        }
        let mut finder = Mentioned(self, false);
        finder.visit_expr_mut(&mut value.clone());
        finder.1
    }

    /// " (here `app` and `order`)", or that there are none, for messages.
    pub(crate) fn listed(&self) -> String {
        let names: Vec<_> = self.0.iter().map(|name| format!("`{name}`")).collect();
        match names.split_last() {
            None => " (here there are none)".to_owned(),
            Some((last, [])) => format!(" (here {last})"),
            Some((last, others)) => format!(" (here {} and {last})", others.join(", ")),
        }
    }

    fn has(&self, name: &Ident) -> bool {
        let name = name.unraw();
        self.0.iter().any(|variable| name == variable)
    }

    /// The same of tokens, in which a member counts as a variable of its name.
    pub(crate) fn are_in_tokens(&self, tokens: &TokenStream) -> bool {
        let in_braces = |text: &str| {
            let ends = |rest: &str| rest.trim_start().starts_with(['}', ':']);
            self.0.iter().any(|name| text.split('{').any(|part| part.strip_prefix(name.as_str()).is_some_and(ends)))
        };
        tokens.clone().into_iter().any(|token| match token {
            TokenTree::Ident(ident) => self.has(&ident),
            TokenTree::Group(group) => self.are_in_tokens(&group.stream()),
            TokenTree::Literal(literal) => in_braces(&literal.to_string()),
            TokenTree::Punct(_) => false,
        })
    }
}

/// Where a handler does what can wait or fail.
pub(crate) const IN_AN_EXTRACTOR: &str =
    "do that in an extractor, and write a field of what it extracts, such as `event.id`";

/// The value of `key`.
pub(crate) fn key(value: &Expr, variables: Option<&Variables>) -> syn::Result<Expr> {
    let expression = evaluated_at_once(value, "key", IN_AN_EXTRACTOR)?;
    if let Some(variables) = variables.filter(|variables| !variables.are_in(&expression)) {
        let arguments = variables.listed();
        let message = format!(
            "this uses no argument of the handler, so all requests would have the same key: write an expression over the \
             arguments{arguments}, such as `key = event.id`, or `header = \"Name\"` for a key in a header"
        );
        return Err(syn::Error::new_spanned(value, message));
    }
    Ok(expression)
}

/// Whether a type is, or contains, the extractor of the key.
pub(crate) fn names_key(ty: &Type) -> bool {
    struct KeyNamed(bool);
    impl VisitMut for KeyNamed {
        fn visit_path_segment_mut(&mut self, segment: &mut syn::PathSegment) {
            self.0 |= segment.ident == "IdempotencyKey";
            visit_mut::visit_path_segment_mut(self, segment);
        }
    }
    let mut finder = KeyNamed(false);
    finder.visit_type_mut(&mut ty.clone());
    finder.0
}

/// An expression, as it goes into the generated function. It can neither wait nor return.
///
/// `instead` says where what cannot be done here belongs.
pub(crate) fn evaluated_at_once(value: &Expr, option: &'static str, instead: &'static str) -> syn::Result<Expr> {
    let mut inner = value::bare(value);
    while let Expr::Paren(paren) = inner {
        // `unused_parens` would point at them.
        inner = value::bare(&paren.expr);
    }
    let mut inner = inner.clone();
    let mut leaving = ControlFlow { option, instead, found: None };
    leaving.visit_expr_mut(&mut inner);
    match leaving.found {
        Some(error) => Err(error),
        None => Ok(inner),
    }
}

/// Looks for what would wait in the generated function, or return from it. (Mutable only because async blocks and
/// closures, where all of that is allowed, are skipped with one feature of syn rather than two.)
struct ControlFlow {
    option: &'static str,
    instead: &'static str,
    found: Option<syn::Error>,
}

impl VisitMut for ControlFlow {
    fn visit_expr_mut(&mut self, value: &mut Expr) {
        match value {
            Expr::Await(_) | Expr::Try(_) | Expr::Return(_) => {
                let Self { option, instead, .. } = self;
                let message = format!("`{option}` cannot use `.await`, `?` or `return`: {instead}");
                self.found.get_or_insert_with(|| syn::Error::new_spanned(value, message));
            }
            Expr::Async(_) | Expr::Closure(_) => {}
            value => visit_mut::visit_expr_mut(self, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use syn::parse_quote;

    fn variables() -> Variables {
        Variables::of(&[parse_quote!(State(app): State<App>), parse_quote!(User { id, name: (a, _) }: User)])
    }

    #[test]
    fn an_expression_mentions_a_variable() {
        for value in [
            parse_quote!(id),
            parse_quote!(&app.config),
            parse_quote!(f(1, a.b)),
            parse_quote!(format!("{id}")),
            parse_quote!(format!("{a:>4}")),
            parse_quote!(format!("{}", app.name)),
            parse_quote!(format!("{id }")),
            parse_quote!(if let Some(x) = &id { x } else { 0 }),
        ] {
            assert!(variables().are_in(&value), "{}", quote::quote!(#value));
        }
    }

    #[test]
    fn a_raw_name_is_the_same_variable() {
        let variables = Variables::of(&[parse_quote!(r#type: Kind), parse_quote!(path: Path)]);
        for value in [parse_quote!(r#type), parse_quote!(format!("{type}")), parse_quote!(r#path)] {
            assert!(variables.are_in(&value), "{}", quote::quote!(#value));
        }
    }

    #[test]
    fn an_expression_mentions_none() {
        for value in [
            parse_quote!("id"),
            parse_quote!({ "app" }),
            parse_quote!(ID),
            parse_quote!(name),
            parse_quote!(CONFIG.id),
            parse_quote!(app::ID),
            parse_quote!(format!("{ida} id a")),
        ] {
            assert!(!variables().are_in(&value), "{}", quote::quote!(#value));
        }
    }

    #[test]
    fn a_type_that_names_the_key() {
        for ty in [parse_quote!(IdempotencyKey), parse_quote!(Option<idem_axum::IdempotencyKey>)] {
            assert!(names_key(&ty));
        }
        assert!(!names_key(&parse_quote!(Json<Key>)));
    }
}
