//! Reads `scope`: keywords, or expressions over the handler's arguments.

use crate::{
    expression::{self, Variables},
    value,
};
use syn::Expr;

/// Whose key it is.
pub(crate) struct DeclaredScope {
    pub(crate) owner: Owner,
    /// Whether `path` is a part.
    pub(crate) path: bool,
}

/// What is beside `path`.
pub(crate) enum Owner {
    /// Nothing.
    Caller,
    /// `global`. The keyword wins over an argument of the same name.
    Global,
    /// `header("Name")`
    Header(String),
    /// Expressions, to be evaluated when the arguments are bound.
    Arguments(Vec<Expr>),
}

pub(crate) fn read(value: &Expr, variables: Option<&Variables>) -> syn::Result<DeclaredScope> {
    let parts: Vec<&Expr> = match value::bare(value) {
        Expr::Tuple(tuple) if tuple.elems.is_empty() => {
            let message = "the scope is empty: write `scope = global` for one scope that all callers share";
            return Err(syn::Error::new_spanned(value, message));
        }
        Expr::Tuple(tuple) => tuple.elems.iter().collect(),
        value => vec![value],
    };
    let (mut keywords, mut headers, mut expressions) = (Vec::new(), Vec::new(), Vec::new());
    for part in parts {
        if let Some(keyword) = keyword(part) {
            if keywords.contains(&keyword) {
                return Err(syn::Error::new_spanned(
                    part,
                    format!("`{keyword}` is part of the scope already: remove it here"),
                ));
            }
            keywords.push(keyword);
        } else if let Some(arguments) = header(part) {
            let Some(name) = arguments else {
                let message = "`header` takes one name: write `scope = header(\"Name\")`";
                return Err(syn::Error::new_spanned(part, message));
            };
            headers.push((part, value::header_name(name, "scope = header(\"Name\")")?));
        } else if let Expr::Binary(sum) = value::bare(part)
            && [&*sum.left, &*sum.right].into_iter().any(|part| keyword(part).is_some() || header(part).is_some())
        {
            let message = "the parts of a scope are a tuple: write for example `scope = (user.id, path)`";
            return Err(syn::Error::new_spanned(part, message));
        } else {
            expressions.push(expression::evaluated_at_once(part, "scope", expression::IN_AN_EXTRACTOR)?);
        }
    }
    let (global, path) = (keywords.contains(&"global"), keywords.contains(&"path"));
    let mut headers = headers.into_iter();
    let owner = match (headers.next(), headers.next()) {
        (Some(_), Some((second, _))) => {
            let message = "a scope has one header at most: extract the other as an argument of the handler, and write a tuple, such as `scope = (tenant, user.id)`";
            return Err(syn::Error::new_spanned(second, message));
        }
        (Some((header, _)), None) if global => {
            let message = "`global` is for all callers, and `header(..)` tells them apart: write one of the two, such as `scope = header(\"X-Tenant\")`";
            return Err(syn::Error::new_spanned(header, message));
        }
        (Some((header, _)), None) if !expressions.is_empty() => {
            let message = "only `path` may be beside `header(..)`: extract the header as an argument of the handler, and write that argument, such as `scope = (tenant, user.id)`";
            return Err(syn::Error::new_spanned(header, message));
        }
        (Some((_, name)), None) => Owner::Header(name),
        (None, _) if expressions.is_empty() => {
            if global {
                Owner::Global
            } else {
                Owner::Caller
            }
        }
        (None, _) => {
            if is_constant(&expressions, variables) {
                let shared = if path { "(global, path)" } else { "global" };
                let arguments = variables.map(Variables::listed).unwrap_or_default();
                let message = format!(
                    "this uses no argument of the handler, so it is the same for every request: write `scope = {shared}` for one \
                     scope that all callers share, `scope = header(\"Name\")`, or an expression over the arguments{arguments}, \
                     such as `scope = user.id`"
                );
                return Err(syn::Error::new_spanned(value, message));
            }
            Owner::Arguments(expressions)
        }
    };
    Ok(DeclaredScope { owner, path })
}

/// Whether the value of all expressions together is the same for every request. Without knowing the arguments, only what is a
/// literal is known to be.
fn is_constant(expressions: &[Expr], variables: Option<&Variables>) -> bool {
    !expressions.iter().any(|expression| match variables {
        Some(variables) => variables.are_in(expression),
        None => !matches!(expression, Expr::Lit(_)),
    })
}

/// The name, if it is a keyword of scopes.
fn keyword(value: &Expr) -> Option<&'static str> {
    let word = value::word(value)?;
    ["global", "path"].into_iter().find(|keyword| word == keyword)
}

/// `Some` for a call of `header`, with its one argument if it has exactly one.
fn header(value: &Expr) -> Option<Option<&Expr>> {
    let (_, arguments) = value::call(value).filter(|(name, _)| *name == "header")?;
    Some(value::argument(arguments))
}
