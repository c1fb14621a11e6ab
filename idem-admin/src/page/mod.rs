//! The page, as HTML. `html!` escapes what is in parentheses; only the style is taken as it is.

use idem_runtime::KeyStatus;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::form::{Fields, Mistake, Settle};
use super::guard::Token;
use super::key_details::{KeyDetails, code};
use super::list::UnknownPage;
use idem_axum::private::RecordedResponse;

mod fields;
mod shown;

use fields::{findings, found_out};
use shown::{StateText, facts, notice, response, unknown_outcomes};

const STYLE: &str = include_str!("style.css");

/// What is the same on every page of one request.
pub(super) struct Frame<'a> {
    pub(super) title: &'a str,
    pub(super) actor: &'a str,
    pub(super) nonce: &'a str,
    pub(super) token: &'a Token,
    pub(super) read_only: bool,
}

/// What became of a change.
#[derive(Clone, Copy)]
pub(super) enum Notice<'a> {
    Done(&'a str),
    Refused(&'a str),
}

/// What is asked before a change.
struct Question<'a> {
    heading: &'a str,
    before: Markup,
    /// The response that the person wrote down.
    written: Option<&'a RecordedResponse>,
    step: &'a str,
    button: &'a str,
    runs_again: bool,
}

impl Frame<'_> {
    /// The page as one comes to it.
    pub(super) fn start(&self) -> Markup {
        let form = self.look_up("Look up a key", &Fields::default(), None, true);
        self.page("Look up a key", &html! { (form) (self.list_unknown("List them", None)) })
    }

    /// The form again, with what is wrong in it.
    pub(super) fn again(&self, fields: &Fields, mistake: &Mistake) -> Markup {
        self.page("Look up a key", &self.look_up("Look up a key", fields, Some(mistake), true))
    }

    /// The state of the key, and what can be done about it.
    pub(super) fn found(
        &self,
        fields: &Fields,
        details: &KeyDetails,
        said: Option<Notice>,
        mistake: Option<&Mistake>,
    ) -> Markup {
        let StateText { name, what, retry } = StateText::of(details.state);
        self.result(
            name,
            fields,
            mistake.is_none(),
            &html! {
                (notice(said))
                .note.(code(details.state)) { p { (what) } p { (retry) } }
                (facts(fields, details))
                @match &details.response {
                    None => {}
                    Some(Ok(recorded)) => { h3 { "What is recorded" } (response(recorded)) }
                    Some(Err(unreadable)) => .note.alert { p { "The response cannot be shown: " (unreadable) "." } }
                }
                @if !self.read_only { (self.changes(fields, details, mistake)) }
            },
        )
    }

    /// The keys whose outcome is unknown, or a part of them.
    pub(super) fn list(&self, listed: &UnknownPage) -> Markup {
        let heading = if listed.keys.is_empty() { "No unknown outcomes here" } else { "Unknown outcomes" };
        self.result(
            heading,
            &Fields::default(),
            true,
            &html! {
                @if !listed.keys.is_empty() {
                    p { "These requests were started, and whatever ran them went away before they ended. The key itself is not stored: find it \
                         by the trace, or by the short key in your logs. Then look it up and settle it." }
                    @if listed.has_functions() {
                        p { "What has an endpoint that begins with " code { "once" } " is no request, so its key cannot be looked up here: \
                             the developers of the service settle it." }
                    }
                    (unknown_outcomes(listed))
                }
                @if let Some(next) = &listed.next { p { "This is a part of the store." } (self.list_unknown("Go on", Some(next))) }
            },
        )
    }

    /// The key is free.
    pub(super) fn absent(&self, fields: &Fields, said: Option<Notice>) -> Markup {
        self.result("Nothing under this key", fields, true, &html! {
            (notice(said))
            .note {
                @if said.is_some() { p { "A request with this key runs as a new one." } }
                @else {
                    p { "The key was never used, or its record has expired or was forgotten. Or a request with it is running now, in a "
                        "database transaction that this process does not see until it has ended. Or it is another key: capitals count, "
                        "and so does whose key it is."
                        @if !fields.path.trim().is_empty() { " If the scope contains " code { "path" } ", so do the method and the path." } }
                    @if fields.path.trim().is_empty() {
                        p { "If the scope of the endpoint contains " code { "path" } ", the method and the path are needed as well." }
                    }
                }
            }
        })
    }

    /// The state of the key could not be found out.
    pub(super) fn unknown(&self, fields: &Fields, why: &str, said: Option<Notice>) -> Markup {
        self.result("Not known", fields, true, &html! { (notice(said)) .note.alert role="alert" { p { (why) } } })
    }

    /// Nothing was done.
    pub(super) fn failed(&self, fields: &Fields, heading: &str, text: &str) -> Markup {
        self.result(heading, fields, true, &html! { .note.alert role="alert" { p { (text) } } })
    }

    /// Asks before a record is forgotten.
    pub(super) fn confirm_forget(&self, fields: &Fields, details: &KeyDetails) -> Markup {
        self.confirm(fields, details, &Question {
            heading: "Forget this key?",
            before: html! { .note.alert {
                p { strong { "The next request with this key runs again, from the start." } }
                p { "If the first one charged a card or placed an order, the next one does so, too. Forget the key only if that is to "
                    "be done once more, or if what the first one did was undone." }
            } },
            written: None,
            step: "forget-now",
            button: "Forget it: a retry runs again",
            runs_again: true,
        })
    }

    /// Asks before a claim is taken away.
    pub(super) fn confirm_revoke(&self, fields: &Fields, details: &KeyDetails) -> Markup {
        self.confirm(fields, details, &Question {
            heading: "Does this request hang?",
            before: html! { .note.alert {
                p { strong { "The request is not stopped, and may still have its effect." } }
                p { "It loses this key: whatever it responds with is not recorded. Its outcome is unknown from then on, and you settle it here." }
                p { "If its endpoint declares that an abandoned request may run again, the next retry does." }
            } },
            written: None,
            step: "revoke-now",
            button: "It hangs: take the key away from it",
            runs_again: true,
        })
    }

    /// Asks before an unknown outcome is settled.
    pub(super) fn confirm_settle(
        &self,
        fields: &Fields,
        details: &KeyDetails,
        written: Option<&RecordedResponse>,
    ) -> Markup {
        let (heading, before, button) = match fields.settle {
            Settle::DidNotHappen => (
                "Did it not happen?",
                html! { .note.alert {
                    p { strong { "The next request with this key runs, from the start." } }
                    p { "If the first one had its effect after all, it has it twice then." }
                } },
                "It did not happen: a retry may run it again",
            ),
            Settle::Response => (
                "Did it happen, with this response?",
                html! { .note.outcome-unknown { p {
                    "Every retry gets the response below, as if the request had ended with it. It does not run again."
                } } },
                "It happened: a retry gets this response",
            ),
            Settle::Happened | Settle::Unsaid => (
                "Did it happen?",
                html! { .note.outcome-unknown { p {
                    "Every retry is told that the request was processed and that its response was not recorded (409). It does not run again."
                } } },
                "It happened: a retry is told so",
            ),
        };
        let runs_again = fields.settle == Settle::DidNotHappen;
        self.confirm(fields, details, &Question { heading, before, written, step: "settle-now", button, runs_again })
    }

    fn confirm(&self, fields: &Fields, details: &KeyDetails, question: &Question) -> Markup {
        let Question { heading, before, written, step, button, runs_again } = question;
        self.page(
            heading,
            &html! {
                section {
                    h2 tabindex="-1" autofocus { (heading) }
                    (before)
                    (facts(fields, details))
                    @if let Some(written) = written { h3 { "What a retry will get" } (response(written)) }
                    form method="post" autocomplete="off" {
                        (self.carried(fields))
                        input type="hidden" name="seen" value=(details.seen());
                        (found_out(fields))
                        .buttons {
                            button.risk[*runs_again] name="step" value=(step) { (button) }
                            button.other name="step" value="look-up" { "Cancel" }
                        }
                    }
                }
            },
        )
    }

    /// What can be changed, in this state of the key.
    fn changes(&self, fields: &Fields, details: &KeyDetails, mistake: Option<&Mistake>) -> Markup {
        html! {
            form method="post" autocomplete="off" {
                (self.carried(fields))
                input type="hidden" name="seen" value=(details.seen());
                @match details.state {
                    KeyStatus::OutcomeUnknown => {
                        h3 { "Settle it" }
                        p { "Find out first, where its effect would be: is there a charge, an order, a message?" }
                        (findings(fields, mistake))
                        .buttons { button name="step" value="settle" { "Settle …" } }
                    }
                    KeyStatus::Recorded | KeyStatus::NotReplayable => {
                        h3 { "Forget it" }
                        p { "Then a retry runs again. You are asked once more before anything is changed." }
                        .buttons { button.other name="step" value="forget" { "Forget …" } }
                    }
                    KeyStatus::InFlight => {
                        p { "If it has been running for too long to end by itself, you can take the key away from it. You are asked once more." }
                        .buttons {
                            button name="step" value="look-up" { "Look again" }
                            button.other name="step" value="revoke" { "It hangs …" }
                        }
                    }
                    _ => .buttons { button name="step" value="look-up" { "Look again" } }
                }
            }
        }
    }

    /// A page with something on it, and the form for another look-up beneath. The focus goes to what is new.
    fn result(&self, heading: &str, fields: &Fields, focus: bool, content: &Markup) -> Markup {
        self.page(
            heading,
            &html! {
                section { h2 tabindex="-1" autofocus[focus] { (heading) } (content) }
                (self.look_up("Look up another key", fields, None, false))
            },
        )
    }

    fn page(&self, heading: &str, content: &Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="robots" content="noindex";
                    title { (heading) " – " (self.title) }
                    style nonce=(self.nonce) { (PreEscaped(STYLE)) }
                }
                body {
                    header {
                        h1 { (self.title) }
                        p { "You are " strong { (self.actor) } ". What you do here is logged." }
                    }
                    main { (content) }
                }
            }
        }
    }
}
