//! The forms: for a look-up, for what a person found out, and what they carry along unseen.

use maud::{Markup, html};

use super::super::form::{Fields, KeySource, Mistake, ScopeKind, Settle};
use super::Frame;

impl Frame<'_> {
    /// The form for a look-up. The focus goes to what is wrong in it, or to the key if `first`.
    pub(super) fn look_up(&self, heading: &str, fields: &Fields, mistake: Option<&Mistake>, first: bool) -> Markup {
        let wrong = |field: &str| mistake.filter(|mistake| mistake.field == field);
        let focus = |field: &str| if mistake.is_some() { wrong(field).is_some() } else { first && field == "key" };
        let line = |id: &'static str, name: &str, value: &str| {
            html! {
                (problem(wrong(id)))
                input type="text" id=(id) name=(name) value=(value) spellcheck="false" autocapitalize="none" autocomplete="off"
                    required[id == "key"] aria-invalid=[invalid(wrong(id))] autofocus[focus(id)]
                    aria-describedby=[described(wrong(id)).or(["key", "path"].contains(&id).then(|| format!("{id}-hint")))];
            }
        };
        let lines = |id: &'static str, name: &str, value: &str| {
            html! {
                (problem(wrong(id)))
                textarea id=(id) name=(name) rows="2" spellcheck="false" autocapitalize="none" aria-invalid=[invalid(wrong(id))]
                    aria-describedby=[described(wrong(id))] autofocus[focus(id)] { "\n" (value) }
            }
        };
        let scope = |scope: ScopeKind, label: &str, hint: Markup| {
            choice("scope", scope_kind(scope), fields.scope == scope, false, label, &hint)
        };
        let source = |source: KeySource, label: &str, hint: Markup| {
            choice("source", key_source(source), fields.source == source, false, label, &hint)
        };
        html! {
            section {
                h2 { (heading) }
                form method="post" autocomplete="off" {
                    input type="hidden" name="token" value=(self.token.as_str());
                    .field {
                        label for="key" { "Key" }
                        p.hint id="key-hint" { "What the client sent in its idempotency header, or what the service took for the key." }
                        (line("key", "key", &fields.key))
                    }
                    fieldset {
                        legend { "Where does the key come from?" }
                        (source(KeySource::Header, "From the client", html! { "In a header, with or without quotes" }))
                        (source(KeySource::Text, "From the service",
                            html! { "As with " code { "key = event.id" } ". Write it as it is: quotes and spaces count" }))
                    }
                    fieldset {
                        legend { "Whose key is it?" }
                        (scope(ScopeKind::Unscoped, "No particular caller’s", html! { "The endpoint has no scope, or " code { "scope = global" } " or " code { "scope = path" } ", or its scope is a header that the request did not have" }))
                        (scope(ScopeKind::Values, "A caller’s, by what the service knows of them",
                            html! { "As with " code { "scope = tenant" } " or " code { "scope = (tenant, user)" } }))
                        .more {
                            label for="values" { "The values, one on each line, in the order of the declaration" }
                            (lines("values", "values", &fields.values))
                        }
                        (scope(ScopeKind::Header, "A caller’s, by a header of the request",
                            html! { "As with " code { "scope = header(\"X-Tenant\")" } }))
                        .more {
                            .field {
                                label for="header" { "Name of the header" }
                                (line("header", "header", &fields.header))
                            }
                            .field {
                                label for="header-values" { "Its value, or one on each line if the client sent several" }
                                (lines("header-values", "header_values", &fields.header_values))
                            }
                        }
                    }
                    .field {
                        label for="path" { "Method and path of the request" }
                        p.hint id="path-hint" {
                            "Only if the scope of the endpoint contains " code { "path" } ", as in " code { "scope = path" } ", " code { "Policy::ACP" }
                            " or " code { "Policy::WEBHOOK" } ". As the client sent them, such as POST /orders/7; a query does not count."
                            " If a layer rewrites the path, write both: POST /orders/7 /shop/orders/7."
                        }
                        (line("path", "path", &fields.path))
                    }
                    .buttons { button name="step" value="look-up" { "Look up" } }
                }
            }
        }
    }

    /// The form for a list of unknown outcomes.
    pub(super) fn list_unknown(&self, button: &str, from: Option<&str>) -> Markup {
        html! {
            section {
                @if from.is_none() { h2 { "Unknown outcomes" } p { "After a crash, these are the keys that need someone to settle them." } }
                form method="post" autocomplete="off" {
                    input type="hidden" name="token" value=(self.token.as_str());
                    @if let Some(from) = from { input type="hidden" name="from" value=(from); }
                    .buttons { button.other name="step" value="unknown" { (button) } }
                }
            }
        }
    }

    /// Which key, in fields that are not shown. Never in an address, which logs and histories keep.
    pub(super) fn carried(&self, fields: &Fields) -> Markup {
        html! {
            input type="hidden" name="token" value=(self.token.as_str());
            input type="hidden" name="key" value=(fields.key);
            input type="hidden" name="source" value=(key_source(fields.source));
            input type="hidden" name="scope" value=(scope_kind(fields.scope));
            input type="hidden" name="header" value=(fields.header);
            input type="hidden" name="path" value=(fields.path);
            (unseen("values", &fields.values))
            (unseen("header_values", &fields.header_values))
        }
    }
}

/// What a person found out about an unknown outcome.
pub(super) fn findings(fields: &Fields, mistake: Option<&Mistake>) -> Markup {
    let wrong = |field: &str| mistake.filter(|mistake| mistake.field == field);
    let found = |found: Settle, label: &str, hint: &str| {
        choice("settle", settle(found), fields.settle == found, true, label, &html! { (hint) })
    };
    let line = |id: &'static str, name: &str, class: &str, value: &str, example: &str| {
        html! {
            (problem(wrong(id)))
            input type="text" class=(class) id=(id) name=(name) value=(value) placeholder=(example) spellcheck="false" autocapitalize="none"
                aria-invalid=[invalid(wrong(id))] aria-describedby=[described(wrong(id))] autofocus[wrong(id).is_some()];
        }
    };
    html! {
        fieldset {
            legend { "What did you find?" }
            (problem(wrong("settle")))
            (found(Settle::Happened, "It happened", "A retry is told so (409, not replayable). It does not run again."))
            (found(Settle::Response, "It happened, and this is the response", "A retry gets what you write down. It does not run again."))
            .more {
                .field { label for="status" { "Status" } (line("status", "status", "short", &fields.status, "201")) }
                .field {
                    label for="content-type" { "Type of the body" }
                    (line("content-type", "content_type", "", &fields.content_type, "application/json"))
                }
                .field {
                    label for="body" { "Body" }
                    (problem(wrong("body")))
                    textarea id="body" name="body" rows="5" spellcheck="false" autocapitalize="none" aria-invalid=[invalid(wrong("body"))]
                        aria-describedby=[described(wrong("body"))] autofocus[wrong("body").is_some()] { "\n" (fields.body) }
                }
            }
            (found(Settle::DidNotHappen, "It did not happen", "A retry may run it again."))
        }
    }
}

/// What a person found out, in fields that are not shown.
pub(super) fn found_out(fields: &Fields) -> Markup {
    html! {
        input type="hidden" name="settle" value=(settle(fields.settle));
        input type="hidden" name="status" value=(fields.status);
        input type="hidden" name="content_type" value=(fields.content_type);
        (unseen("body", &fields.body))
    }
}

fn choice(name: &str, value: &str, checked: bool, required: bool, label: &str, hint: &Markup) -> Markup {
    html! {
        .choice {
            input type="radio" name=(name) id={ (name) "-" (value) } value=(value) checked[checked] required[required]
                aria-describedby={ (name) "-" (value) "-hint" };
            label for={ (name) "-" (value) } { (label) }
            p.hint id={ (name) "-" (value) "-hint" } { (hint) }
        }
    }
}

/// A text area and no hidden field, since it keeps line breaks. The first one is the parser's.
fn unseen(name: &str, value: &str) -> Markup {
    html! { textarea name=(name) hidden { "\n" (value) } }
}

fn problem(mistake: Option<&Mistake>) -> Markup {
    html! { @if let Some(Mistake { field, text }) = mistake { p.wrong role="alert" id={ (field) "-wrong" } { (text) } } }
}

fn invalid(mistake: Option<&Mistake>) -> Option<&'static str> {
    mistake.map(|_| "true")
}

fn described(mistake: Option<&Mistake>) -> Option<String> {
    mistake.map(|mistake| format!("{}-wrong", mistake.field))
}

fn key_source(source: KeySource) -> &'static str {
    match source {
        KeySource::Header => "header",
        KeySource::Text => "text",
    }
}

fn scope_kind(scope: ScopeKind) -> &'static str {
    match scope {
        ScopeKind::Unscoped => "unscoped",
        ScopeKind::Values => "values",
        ScopeKind::Header => "header",
    }
}

fn settle(found: Settle) -> &'static str {
    match found {
        Settle::Unsaid => "unsaid",
        Settle::Happened => "happened",
        Settle::Response => "response",
        Settle::DidNotHappen => "did-not-happen",
    }
}
