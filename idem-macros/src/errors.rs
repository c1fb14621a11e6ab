//! Collects every mistake, so that one compile shows them all, and knows what was meant.

use proc_macro2::TokenStream;
use quote::ToTokens;
use std::fmt::Display;

/// The mistakes found so far.
///
/// There is no constructor: [`collect`] lends one and hands the mistakes back beside the result, so none can be
/// forgotten on the way.
pub(crate) struct Errors(Option<syn::Error>);

/// Runs `work` with a collector; the second half of the result is one `compile_error!` per mistake.
pub(crate) fn collect<T>(work: impl FnOnce(&mut Errors) -> T) -> (T, TokenStream) {
    let mut errors = Errors(None);
    let result = work(&mut errors);
    let mistakes = errors.0.map(syn::Error::into_compile_error);
    (result, mistakes.unwrap_or_default())
}

impl Errors {
    pub(crate) fn push(&mut self, error: syn::Error) {
        match &mut self.0 {
            Some(all) => all.combine(error),
            none => *none = Some(error),
        }
    }

    /// A mistake at `tokens`: the caret covers all of them.
    pub(crate) fn at(&mut self, tokens: impl ToTokens, message: impl Display) {
        self.push(syn::Error::new_spanned(tokens, message));
    }

    /// Keeps the value, or the mistake.
    pub(crate) fn keep<T>(&mut self, result: syn::Result<T>) -> Option<T> {
        result.map_err(|error| self.push(error)).ok()
    }
}

/// "unknown option `tll`; did you mean `ttl`?", or every known name if none is near. A known name is as it must be written, with its
/// arguments: `wait("5s")`.
pub(crate) fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match did_you_mean(name, known) {
        Some(meant) => format!("unknown {what} `{name}`; did you mean `{meant}`?"),
        None => format!("unknown {what} `{name}`; write {}", one_of(known)),
    }
}

/// "one of `a`, `b` and `c`"
pub(crate) fn one_of(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("one of {} and {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// The known name that is meant: one that differs by a letter, or else the last word of `name`, or else the nearest, if it is near enough.
pub(crate) fn did_you_mean<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = name.to_lowercase().replace('-', "_");
    let distance = |known: &str| distance(&name, word_of(known));
    let nearest = known.iter().copied().min_by_key(|known| distance(known));
    if let Some(nearest) = nearest.filter(|known| distance(known) <= 1 + word_of(known).len() / 8) {
        return Some(nearest);
    }
    // `key_header` is nearer to `replay_header`, and `not_required` is not `required`.
    let last_word = name.rsplit_once('_').filter(|(first, _)| !["no", "not"].contains(first)).map(|(_, word)| word);
    let word = known.iter().copied().find(|known| Some(word_of(known)) == last_word);
    word.or(nearest.filter(|known| distance(known) <= 1 + word_of(known).len() / 4))
}

/// The word of `wait("5s")`.
fn word_of(known: &str) -> &str {
    known.split_once('(').map_or(known, |(word, _)| word)
}

/// Edits that turn `a` into `b`: insert, remove or replace one character, or swap two neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut cost = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                cost = cost.min(rows[i - 2][j - 2] + 1);
            }
            row.push(cost);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use quote::quote;

    #[test]
    fn everything_collected_comes_out() {
        let (result, mistakes) = collect(|errors| {
            errors.at(quote!(a), "first");
            assert_eq!(errors.keep(Ok(1)), Some(1));
            assert_eq!(errors.keep::<u8>(Err(syn::Error::new_spanned(quote!(b), "second"))), None);
            "result"
        });
        assert_eq!(result, "result");
        let mistakes = mistakes.to_string();
        assert_eq!(mistakes.matches("compile_error").count(), 2, "{mistakes}");
        assert!(mistakes.contains("first") && mistakes.contains("second"), "{mistakes}");
    }

    #[test]
    fn nothing_collected_is_nothing_emitted() {
        assert!(collect(|_| ()).1.is_empty());
    }

    #[test]
    fn near_names_are_suggested() {
        let known =
            ["key", "min_key", "ttl", "header", "in_flight", "fingerprint", "replay", "replay_status", "replay_header"];
        for (name, meant) in [
            ("tll", "ttl"),
            ("TTL", "ttl"),
            ("tl", "ttl"),
            ("headr", "header"),
            ("haeder", "header"),
            ("hedar", "header"),
            ("in-flight", "in_flight"),
            ("inflight", "in_flight"),
            ("fingerprints", "fingerprint"),
            ("replay_statsu", "replay_status"),
            ("replay_sattsu", "replay_status"),
            ("mn_key", "min_key"),
            ("key_header", "header"),
            ("key-header", "header"),
            ("my_key_header", "header"),
            ("rply_header", "replay_header"),
            ("replay_hdr", "replay_header"),
        ] {
            assert_eq!(did_you_mean(name, &known), Some(meant), "{name}");
        }
        for name in ["", "x", "timeout", "größe", "no_ttl", "not_ttl", "key_length"] {
            assert_eq!(did_you_mean(name, &known), None, "{name}");
        }
    }

    #[test]
    fn two_swapped_neighbours_are_one_edit() {
        for (a, b, edits) in [
            ("", "abc", 3),
            ("ab", "ba", 1),
            ("abcd", "abdc", 1),
            ("abcd", "bacd", 1),
            ("abcd", "badc", 2),
            ("xabcd", "abdc", 2),
            ("abc", "axc", 1),
            ("aab", "aba", 1),
            ("abc", "cab", 2),
            ("ab", "bxa", 3),
            ("bxa", "ab", 3),
            ("abcdef", "abcfed", 2),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn unknown_names_without_a_near_one_list_what_is_known() {
        assert_eq!(unknown("term", "x", &["refuse", "rerun"]), "unknown term `x`; write one of `refuse` and `rerun`");
        assert_eq!(unknown("term", "rerum", &["refuse", "rerun"]), "unknown term `rerum`; did you mean `rerun`?");
    }

    #[test]
    fn names_are_suggested_with_the_arguments_that_they_need() {
        let known = ["reject", "wait(\"5s\")"];
        for name in ["wiat", "then_wait"] {
            let said = format!("unknown value `{name}`; did you mean `wait(\"5s\")`?");
            assert_eq!(unknown("value", name, &known), said);
        }
        // It is far from `wait`, however long the arguments are.
        assert_eq!(unknown("value", "w", &known), "unknown value `w`; write one of `reject` and `wait(\"5s\")`");
    }
}
