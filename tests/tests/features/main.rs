//! The options, the presets and what goes with them, black box. What the README guarantees is in `tests/promises`.

mod admin;
mod clients;
mod execution_info;
mod extractors;
mod handlers;
mod ietf_draft;
mod in_flight_wait;
mod key_expression;
mod key_extractor;
mod layers;
mod no_secrets_in_logs;
mod openapi;
mod openapi_beside;
mod options;
mod panic_and_timeout;
mod policy_document;
mod request_bodies;
mod shadow;
mod shadow_bodies;
mod shadow_published;
mod spans_and_events;
mod ttl;
mod unrecorded;
mod uploads;
mod user_store;
