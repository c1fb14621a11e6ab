//! The policies in an OpenAPI document of `utoipa`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use http::Method;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{AnyOfBuilder, Components, ObjectBuilder, Schema, Type};
use utoipa::openapi::{Content, Header, OpenApi, Ref, RefOr, Required, Response};

use super::document::DescribedRules;
use super::document::{DescribedKey, DescribedReplay, Range};
use super::index::{ListedEndpoint, Policies};
use super::refusal_examples::RefusalExample;
use super::undescribed::Undescribed;

/// The component that describes the default body of a refusal.
const PROBLEM: &str = "IdempotencyProblem";

/// The response for every status that an operation does not name.
const DEFAULT: &str = "default";

/// Where an operation has its rules.
const EXTENSION: &str = "x-idempotency";

impl<S> Policies<S> {
    /// Adds to the operation of each endpoint, in an OpenAPI document that `utoipa` made:
    ///
    /// - the header of the key as a parameter, unless the endpoint has `key = ..`;
    /// - the refusals as responses, each with an example of its body and, if it is problem details, the schema
    ///   `IdempotencyProblem`;
    /// - the header that marks a replay, and those of `replay_with`, on the responses that a replay may have;
    /// - `x-idempotency`, with the endpoint's rules as they are in the policy document.
    ///
    /// An endpoint in shadow mode refuses and replays nothing, so its operation gets only the parameter, which is optional, and
    /// `x-idempotency`, in which `enforced` is false.
    ///
    /// What an operation says itself of the same header, status or media type stays beside it. The document must have the
    /// paths as clients see them, and as they are listed here; `{*rest}` is `{rest}` in OpenAPI. An operation that has
    /// `x-idempotency` already was described before, and stays as it is.
    ///
    /// ```
    /// use axum::http::Method;
    /// use idem_axum::{Policies, idempotent};
    /// use utoipa::openapi::{OpenApi, Paths, HttpMethod, Info, path::Operation};
    ///
    /// #[idempotent(required)]
    /// async fn pay() {}
    ///
    /// # let mut paths = Paths::new();
    /// # paths.add_path_operation("/pay", vec![HttpMethod::Post], Operation::new());
    /// # let made_by_utoipa = || OpenApi::new(Info::new("Payments", "1"), paths);
    /// let policies = Policies::<()>::at("/.well-known/idempotency").endpoint(Method::POST, "/pay", pay);
    /// let mut api = made_by_utoipa(); // with its macros: `Api::openapi()`
    /// policies.describe(&mut api)?;
    /// # assert!(api.paths.paths["/pay"].post.as_ref().unwrap().responses.responses.contains_key("409"));
    /// # Ok::<(), idem_axum::Undescribed>(())
    /// ```
    ///
    /// # Errors
    /// [`Undescribed`], which names the endpoints that have no operation, or the first whose operation has a parameter or a
    /// response that refers to what is no component of the document. Nothing was added then.
    pub fn describe(&self, api: &mut OpenApi) -> Result<(), Undescribed> {
        let paths = &mut api.paths.paths;
        let mut has_operation = |endpoint: &ListedEndpoint| {
            let item = paths.get_mut(&path(&endpoint.path));
            item.and_then(|item| operation(item, &endpoint.method)).is_some()
        };
        let missing = self.endpoints().iter().filter(|endpoint| !has_operation(endpoint));
        let missing: Vec<String> = missing.map(|endpoint| format!("{} {}", endpoint.method, endpoint.path)).collect();
        if !missing.is_empty() {
            return Err(Undescribed::without_operation(missing));
        }
        let none = Components::default();
        let components = api.components.as_ref().unwrap_or(&none);
        for ListedEndpoint { method, path: template, .. } in self.endpoints() {
            let operation = paths.get_mut(&path(template)).and_then(|item| operation(item, method));
            if let Some(referred) = operation.and_then(|operation| unresolved(operation, components)) {
                return Err(Undescribed::unresolved(format!("{method} {template}"), referred.to_owned()));
            }
        }
        let components = api.components.get_or_insert_default();
        for ListedEndpoint { method, path: template, rules, .. } in self.endpoints() {
            if let Some(operation) = paths.get_mut(&path(template)).and_then(|item| operation(item, method)) {
                describe(operation, rules, components);
            }
        }
        components.schemas.insert(PROBLEM.to_owned(), problem());
        Ok(())
    }
}

/// A template as OpenAPI has it.
fn path(template: &str) -> String {
    template.replace("{*", "{")
}

fn operation<'a>(item: &'a mut PathItem, method: &Method) -> Option<&'a mut Operation> {
    match method.as_str() {
        "GET" => item.get.as_mut(),
        "PUT" => item.put.as_mut(),
        "POST" => item.post.as_mut(),
        "DELETE" => item.delete.as_mut(),
        "OPTIONS" => item.options.as_mut(),
        "HEAD" => item.head.as_mut(),
        "PATCH" => item.patch.as_mut(),
        "TRACE" => item.trace.as_mut(),
        _ => None,
    }
}

fn describe(operation: &mut Operation, rules: &DescribedRules, components: &Components) {
    let extensions = operation.extensions.get_or_insert_default();
    if extensions.contains_key(EXTENSION) {
        // It was described before, and its refusals would be taken for its own responses.
        return;
    }
    let described = serde_json::to_value(rules).unwrap_or_default();
    extensions.merge(Extensions::from_iter([(EXTENSION, described)]));
    header_of_the_key(operation.parameters.get_or_insert_default(), rules, components);
    if !rules.enforced {
        // The operation responds as it would without the attribute.
        return;
    }
    let responses = &mut operation.responses.responses;
    for response in responses.values_mut() {
        resolve(response, RESPONSES, &components.responses);
        if let RefOr::T(response) = response {
            for content in response.content.values_mut() {
                resolve(content, MEDIA_TYPES, &components.media_types);
            }
        }
    }
    marks_of_replays(responses, rules);
    let mut by_status: BTreeMap<u16, Vec<&RefusalExample>> = BTreeMap::new();
    for refused in &rules.refusals {
        by_status.entry(refused.status).or_default().push(refused);
    }
    for (status, refused) in by_status {
        let covering = covering(responses, status);
        if let RefOr::T(response) = responses.entry(status.to_string()).or_insert(covering) {
            refusals(response, &refused);
        }
        // An end of the handler that is recorded is replayed as well.
        if refused.iter().any(|refusal| refusal.tells_of_an_execution)
            && contains(&rules.record, status)
            && rules.replay.replay_status.is_none()
            && let Some(response) = responses.get_mut(&status.to_string())
        {
            mark(response, &rules.replay, &[status]);
        }
    }
}

/// Where components of one kind are, as a reference has it.
const PARAMETERS: &str = "#/components/parameters/";
const RESPONSES: &str = "#/components/responses/";
const MEDIA_TYPES: &str = "#/components/mediaTypes/";

/// The component that is meant: the reference itself if there is none.
fn resolved<'a, T>(of: &'a RefOr<T>, kind: &str, components: &'a BTreeMap<String, RefOr<T>>) -> Result<&'a T, &'a str> {
    match of {
        RefOr::T(value) => Ok(value),
        RefOr::Ref(Ref { ref_location, .. }) => {
            let name = ref_location.strip_prefix(kind).and_then(|name| components.get(name));
            if let Some(RefOr::T(component)) = name { Ok(component) } else { Err(ref_location) }
        }
    }
}

/// Puts a component where it is referred to, so that something can be added for this operation alone.
fn resolve<T: Clone>(referred: &mut RefOr<T>, kind: &str, components: &BTreeMap<String, RefOr<T>>) {
    if let Ok(component) = resolved(referred, kind, components) {
        *referred = RefOr::T(component.clone());
    }
}

/// The first reference of an operation that leads to nothing.
fn unresolved<'a>(operation: &'a Operation, components: &'a Components) -> Option<&'a str> {
    let mut parameters = operation.parameters.iter().flatten();
    let parameter = parameters.find_map(|parameter| resolved(parameter, PARAMETERS, &components.parameters).err());
    let response = |response: &'a RefOr<Response>| match resolved(response, RESPONSES, &components.responses) {
        Ok(response) => {
            let mut content = response.content.values();
            content.find_map(|content| resolved(content, MEDIA_TYPES, &components.media_types).err())
        }
        Err(referred) => Some(referred),
    };
    parameter.or_else(|| operation.responses.responses.values().find_map(response))
}

fn header_of_the_key(parameters: &mut Vec<RefOr<Parameter>>, rules: &DescribedRules, components: &Components) {
    // A key in the content of the request is described by the operation itself.
    let Some(key) = &rules.key.header else { return };
    let is_key = |parameter: &RefOr<Parameter>| {
        let parameter = resolved(parameter, PARAMETERS, &components.parameters).ok()?;
        let is_key = parameter.parameter_in == ParameterIn::Header && parameter.name.eq_ignore_ascii_case(&key.name);
        is_key.then(|| parameter.clone())
    };
    let declared = parameters.iter().find_map(is_key);
    parameters.retain(|parameter| is_key(parameter).is_none());
    let (name, description) = declared.map_or((None, None), |own| (Some(own.name), own.description));
    // The lengths of the policy are those of the key, and the value of the header may have quotes and backslashes as well.
    let schema = ObjectBuilder::new().schema_type(Type::String).pattern(Some(&key.pattern));
    let description = description.unwrap_or_else(|| {
        let otherwise = match rules {
            DescribedRules { enforced: false, .. } => " The rules are on trial, and nothing protects a retry yet.",
            DescribedRules { key: DescribedKey { required: true, .. }, .. } => "",
            _ => " Without it, nothing protects a retry.",
        };
        format!("Unique for this operation, and the same on every retry of it.{otherwise}")
    });
    let parameter = ParameterBuilder::new()
        .name(name.unwrap_or_else(|| key.name.clone()))
        .parameter_in(ParameterIn::Header)
        .required(if rules.key.required { Required::True } else { Required::False })
        .description(Some(description))
        .schema(Some(schema));
    parameters.push(RefOr::T(parameter.build()));
}

/// What an operation says of this status by its range or by default: its own entry would hide that.
fn covering(responses: &BTreeMap<String, RefOr<Response>>, status: u16) -> RefOr<Response> {
    let range = format!("{}XX", status / 100);
    let of_range = responses.iter().find(|(code, _)| code.eq_ignore_ascii_case(&range)).map(|(_, response)| response);
    of_range.or_else(|| responses.get(DEFAULT)).cloned().unwrap_or_else(|| Response::new("").into())
}

/// The first and the last status of an entry: `2XX` for all of them.
fn bounds(code: &str) -> Option<(u16, u16)> {
    let bound = |digit: &str| code.replace(['X', 'x'], digit).parse::<u16>().ok();
    Some((bound("0")?, bound("9")?))
}

/// The marker, and headers that are added, on every response that may be a replay.
fn marks_of_replays(responses: &mut BTreeMap<String, RefOr<Response>>, rules: &DescribedRules) {
    let named: Vec<(u16, u16)> = responses.keys().filter_map(|code| bounds(code)).collect();
    let recorded = |code: &str| -> Vec<u16> {
        let meant = |status: &u16| match bounds(code) {
            Some((first, last)) => (first..=last).contains(status),
            // All that the operation does not name.
            None => code == DEFAULT && !named.iter().any(|(first, last)| (first..=last).contains(&status)),
        };
        (200..=999).filter(|status| meant(status) && contains(&rules.record, *status)).collect()
    };
    if let Some(status) = rules.replay.replay_status {
        let success = responses.iter().find(|(code, _)| code.starts_with('2') && !recorded(code).is_empty());
        let success =
            success.or_else(|| responses.iter().find(|(code, _)| *code == DEFAULT && !recorded(code).is_empty()));
        let content = match success {
            Some((_, RefOr::T(response))) => response.content.clone(),
            _ => Default::default(),
        };
        let replay = responses.entry(status.to_string()).or_insert_with(|| {
            let mut replay = Response::new("The recorded response to the first request with this key.");
            replay.content = content;
            replay.into()
        });
        let all: Vec<u16> = (200..=999).filter(|status| contains(&rules.record, *status)).collect();
        return mark(replay, &rules.replay, &all);
    }
    for (code, response) in responses.iter_mut() {
        mark(response, &rules.replay, &recorded(code));
    }
}

fn contains(ranges: &[Range], status: u16) -> bool {
    ranges.iter().any(|range| (range.from..=range.to).contains(&status))
}

/// Adds the headers that a replay has of a response that was recorded with one of these statuses.
fn mark(response: &mut RefOr<Response>, replay: &DescribedReplay, recorded: &[u16]) {
    let RefOr::T(response) = response else { return };
    let headers = replay.marker.iter().chain(&replay.added_headers);
    let is_on = |on: &[Range]| on.is_empty() || recorded.iter().any(|&status| contains(on, status));
    for on_replays in headers.filter(|header| !recorded.is_empty() && is_on(&header.on)) {
        let schema = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([on_replays.value]));
        add(
            response,
            &on_replays.name,
            header(schema, "Only on a replay: the recorded response to an earlier request."),
        );
    }
}

/// Adds a header, unless it is there, in whatever case.
fn add(response: &mut Response, name: &str, header: RefOr<Header>) {
    if !response.headers.keys().any(|other| other.eq_ignore_ascii_case(name)) {
        response.headers.insert(name.to_owned(), header);
    }
}

fn header(schema: ObjectBuilder, description: &str) -> RefOr<Header> {
    RefOr::T(HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build())
}

/// Adds the refusals that have this response's status.
fn refusals(response: &mut Response, refusals: &[&RefusalExample]) {
    let mut description = "Refused by the idempotency runtime:\n".to_owned();
    for RefusalExample { code, title, content_type, retry_after, body, .. } in refusals.iter().copied() {
        let _ = write!(description, "\n- `{code}`: {title}");
        if retry_after.is_some() {
            let schema = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
            add(response, "retry-after", header(schema, "Seconds after which to retry the identical request."));
        }
        let Some(content_type) = content_type else { continue };
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let mut fresh = false;
        let content = response.content.entry(media_type.to_owned()).or_insert_with(|| {
            fresh = true;
            Content::default().into()
        });
        let RefOr::T(content) = content else { continue };
        let Some(body) = body else { continue };
        if is_problem(body) {
            content.schema = Some(either(content.schema.take(), fresh));
        }
        if let Some(own) = content.example.take() {
            content.examples.insert("example".to_owned(), ExampleBuilder::new().value(Some(own)).build().into());
        }
        let example = ExampleBuilder::new().summary(*title).value(Some(body.clone())).build();
        content.examples.insert((*code).to_owned(), example.into());
    }
    let own = std::mem::take(&mut response.description);
    response.description = if own.is_empty() { description } else { format!("{own}\n\n{description}") };
}

/// Whether a body is the default one, which the component describes.
fn is_problem(body: &serde_json::Value) -> bool {
    ["type", "title", "status", "detail", "code"].iter().all(|name| body.get(name).is_some())
}

/// Problem details of ours, beside what the operation has at the same place.
fn either(own: Option<RefOr<Schema>>, fresh: bool) -> RefOr<Schema> {
    let ours = RefOr::Ref(Ref::from_schema_name(PROBLEM));
    match own {
        None if fresh => ours,
        // It says nothing about its bodies, so there is nothing to add to.
        None => ObjectBuilder::new().schema_type(utoipa::openapi::schema::SchemaType::AnyValue).into(),
        Some(own) if own == ours => own,
        // Another refusal of the same status was here before.
        Some(RefOr::T(Schema::AnyOf(any))) if any.items.contains(&ours) => RefOr::T(Schema::AnyOf(any)),
        Some(own) => AnyOfBuilder::new().item(own).item(ours).into(),
    }
}

/// The default body of a refusal.
fn problem() -> RefOr<Schema> {
    let text = |description: &str| ObjectBuilder::new().schema_type(Type::String).description(Some(description));
    let status = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .description(Some("The status of the response."))
        // An acknowledgement of a key in flight is a 2xx.
        .minimum(Some(200))
        .maximum(Some(599));
    let kind = text("A URI for the kind of refusal: `urn:problem-type:` and the code.");
    ObjectBuilder::new()
        .description(Some("A refusal of the idempotency runtime, as problem details (RFC 9457)."))
        .property("type", kind)
        .property("title", text("A few words for a person."))
        .property("status", status)
        .property("detail", text("What happened, what was not done, and what to do now."))
        .property("code", text("The name of the refusal, for programs. It never changes."))
        .required("type")
        .required("title")
        .required("status")
        .required("detail")
        .required("code")
        .into()
}
