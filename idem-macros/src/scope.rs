//! Reads `scope`: two keywords, or an expression over the handler's arguments.

use crate::value;
use syn::{
    Expr,
    visit_mut::{self, VisitMut},
};

/// Whose key it is.
pub(crate) enum Scope {
    /// `global`. The keyword wins over an argument of the same name.
    Global,
    /// `header("Name")`
    Header(String),
    /// One expression, or those of a tuple, to be evaluated where the arguments are bound.
    Arguments(Vec<Expr>),
}

pub(crate) fn read(value: &Expr) -> syn::Result<Scope> {
    if is_global(value) {
        return Ok(Scope::Global);
    }
    if let Some(arguments) = header(value) {
        return match arguments {
            Some(name) => Ok(Scope::Header(value::header_name(name, "scope = header(\"Name\")")?)),
            None => Err(syn::Error::new_spanned(value, "`header` takes one name: write `scope = header(\"Name\")`")),
        };
    }
    match value::bare(value) {
        Expr::Lit(_) => {
            let message = "this is the same for every request: write `scope = global` for one scope that all callers share, \
                `scope = header(\"Name\")`, or an expression over the handler's arguments such as `scope = user.id`";
            Err(syn::Error::new_spanned(value, message))
        }
        Expr::Tuple(tuple) if tuple.elems.is_empty() => {
            let message = "an empty scope: write `scope = global` for one scope that all callers share";
            Err(syn::Error::new_spanned(value, message))
        }
        Expr::Tuple(tuple) => tuple.elems.iter().map(argument).collect::<syn::Result<_>>().map(Scope::Arguments),
        value => Ok(Scope::Arguments(vec![argument(value)?])),
    }
}

fn is_global(value: &Expr) -> bool {
    value::word(value).is_some_and(|word| word == "global")
}

/// `Some` for a call of `header`, with its one argument if it has exactly one.
fn header(value: &Expr) -> Option<Option<&Expr>> {
    let (_, arguments) = value::call(value).filter(|(name, _)| *name == "header")?;
    Some(value::argument(arguments))
}

/// An expression, as it goes into the generated function.
fn argument(value: &Expr) -> syn::Result<Expr> {
    if is_global(value) || header(value).is_some() {
        let message =
            "`global` and `header(..)` stand alone; a header can come into a tuple as an argument of the handler";
        return Err(syn::Error::new_spanned(value, message));
    }
    let mut inner = value::bare(value);
    while let Expr::Paren(paren) = inner {
        // `unused_parens` would point at them.
        inner = value::bare(&paren.expr);
    }
    let mut inner = inner.clone();
    let mut leaving = Leaving(None);
    leaving.visit_expr_mut(&mut inner);
    match leaving.0 {
        Some(error) => Err(error),
        None => Ok(inner),
    }
}

/// Looks for what would wait in the generated function, or return from it. (Mutable only because async blocks and
/// closures, where all of that is fine, are looked past with one feature of syn rather than two.)
struct Leaving(Option<syn::Error>);

impl VisitMut for Leaving {
    fn visit_expr_mut(&mut self, value: &mut Expr) {
        match value {
            Expr::Await(_) | Expr::Try(_) | Expr::Return(_) => {
                let message = "`scope` is evaluated at once, and can neither wait nor fail: let an extractor do that";
                self.0.get_or_insert_with(|| syn::Error::new_spanned(value, message));
            }
            Expr::Async(_) | Expr::Closure(_) => {}
            value => visit_mut::visit_expr_mut(self, value),
        }
    }
}
