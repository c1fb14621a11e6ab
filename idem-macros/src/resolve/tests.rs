use super::*;
use crate::{errors::collect, options};

/// The chain and the scope, without white space; and the mistakes.
fn resolved(options: TokenStream) -> (String, usize, String) {
    let (resolved, mistakes) = collect(|errors| {
        let options = options::parse(options, options::Target::Handler, errors);
        let arguments = [syn::parse_quote!(User { user, ids }: User), syn::parse_quote!(event: Json<Event>)];
        resolve(&options, Some(&arguments), errors)
    });
    (resolved.policy.to_string().replace(' ', ""), resolved.scope.len(), mistakes.to_string())
}

#[track_caller]
fn chain(options: TokenStream, expected: &str) {
    let (chain, _, mistakes) = resolved(options);
    assert_eq!(mistakes, "");
    assert_eq!(chain.replace("::idem_axum::private::", "").replace("::idem_axum::Policy::DEFAULT", ""), expected);
}

#[track_caller]
fn refused(options: TokenStream, part: &str) {
    let (chain, scope, mistakes) = resolved(options);
    let mistakes = mistakes.replace('\\', "");
    assert_eq!(mistakes.matches("compile_error").count(), 1, "{mistakes}");
    assert!(mistakes.contains(part), "{mistakes} does not contain {part}");
    // What was refused stays at its default.
    assert!(chain.starts_with("::idem_axum::Policy::DEFAULT") && scope == 0, "{chain}");
}

#[test]
fn an_option_that_is_missing_is_not_in_the_chain() {
    chain(quote!(), "");
    chain(quote!(ttl = "1h"), ".ttl(::core::time::Duration::new(3600,0))");
}

#[test]
fn options_and_their_methods() {
    chain(quote!(required), ".required()");
    chain(quote!(required = true), ".required()");
    chain(quote!(shadow), ".shadow()");
    chain(quote!(shadow = true), ".shadow()");
    chain(quote!(min_key = 8), ".min_key(8)");
    chain(quote!(header = "Idempotency-Key"), ".header(\"idempotency-key\")");
    chain(quote!(scope = global), ".scope(Scope::Global)");
    chain(quote!(scope = header("X-Tenant")), ".scope(Scope::Header(\"x-tenant\"))");
    for scope in [quote!(path), quote!((path,))] {
        chain(quote!(scope = #scope), ".scope(Scope::Path)");
    }
    chain(quote!(scope = (global,)), ".scope(Scope::Global)");
    for scope in [quote!((path, global)), quote!((global, path))] {
        chain(quote!(scope = #scope), ".scope(Scope::GlobalAndPath)");
    }
    for scope in [quote!((path, header("X-Tenant"))), quote!((header("X-Tenant"), path))] {
        chain(quote!(scope = #scope), ".scope(Scope::HeaderAndPath(\"x-tenant\"))");
    }
    chain(quote!(fingerprint = none), ".no_fingerprint()");
    chain(quote!(timeout = "30s"), ".timeout(::core::time::Duration::new(30,0))");
    chain(quote!(in_flight = reject(202)), ".in_flight(InFlight::reject(202))");
    chain(quote!(in_flight = reject), ".in_flight(InFlight::reject(409))");
    chain(quote!(in_flight = reject(423)), ".in_flight(InFlight::reject(423))");
    chain(quote!(in_flight = wait("5s")), ".in_flight(InFlight::wait(::core::time::Duration::new(5,0)))");
    chain(quote!(replay = status, mismatch = 409), ".mismatch(409).replay(Replay::STATUS)");
    chain(
        quote!(replay = status + body, replay_status = 200),
        ".replay(Replay::STATUS.and(Replay::BODY)).replay_status(200)",
    );
    chain(
        quote!(replay_header = "X-Replay"),
        r#".replay_header({const_:::idem_axum::Policy=.replay_header("x-replay");"x-replay"})"#,
    );
    chain(quote!(replay_header = none), ".no_replay_header()");
    chain(quote!(abandoned = rerun), ".abandoned(Abandoned::Rerun)");
    chain(quote!(abandoned = refuse), ".abandoned(Abandoned::Refuse)");
    chain(quote!(max_response = "1MiB"), ".max_response(1048576)");
    chain(quote!(errors = my::render), ".errors(my::render)");
}

#[test]
fn another_start_and_another_crate() {
    let (chain, ..) = resolved(quote!(crate = crate::idem, record = all, policy = my::POLICY));
    assert_eq!(chain, "my::POLICY.record(crate::idem::private::Statuses::ALL)");
    let (chain, ..) = resolved(quote!(crate = crate::idem));
    assert_eq!(chain, "crate::idem::Policy::DEFAULT");
    let (chain, _, mistakes) = resolved(quote!(crate = "my::idem"));
    assert_eq!(chain, "my::idem::Policy::DEFAULT", "what the string says is gone on with");
    assert!(mistakes.contains("remove the quotes"), "{mistakes}");
}

#[test]
fn scopes_over_the_arguments() {
    for (scope, parts) in [
        (quote!(scope = user.id), 1),
        (quote!(scope = (user.id)), 1),
        (quote!(scope = (user.tenant, user.id)), 2),
        (quote!(scope = (global, user.id)), 1),
        (quote!(scope = ("orders", user.id)), 2),
        (
            quote!(
                scope = ids
                    .iter()
                    .map(|id| {
                        return id.0;
                    })
                    .sum::<u64>()
            ),
            1,
        ),
    ] {
        let (chain, count, mistakes) = resolved(scope);
        let wanted = "::idem_axum::Policy::DEFAULT.scope_of_arguments()";
        assert_eq!((chain.as_str(), count, mistakes.as_str()), (wanted, parts, ""));
    }
}

#[test]
fn a_scope_of_arguments_and_the_path() {
    for (scope, parts) in [(quote!((user.id, path)), 1), (quote!((path, user.tenant, global, user.id)), 2)] {
        let (chain, count, mistakes) = resolved(quote!(scope = #scope));
        let wanted = "::idem_axum::Policy::DEFAULT.scope_of_arguments_and_path()";
        assert_eq!((chain.as_str(), count, mistakes.as_str()), (wanted, parts, ""));
    }
}

#[test]
fn a_key_over_the_arguments() {
    chain(quote!(key = event.id), ".key_from_arguments()");
    chain(quote!(key = event.ids.first(), required), ".key_from_arguments().required()");
    for (beside, part) in
        [(quote!(header = "X"), "takes the place of the header"), (quote!(min_key = 8), "`min_key` is about")]
    {
        let (.., mistakes) = resolved(quote!(key = event.id, #beside));
        assert_eq!(mistakes.matches("compile_error").count(), 1, "{mistakes}");
        assert!(mistakes.contains(part), "{mistakes}");
    }
}

#[test]
fn values_that_are_refused() {
    refused(quote!(required = 3), "`required` is a flag");
    refused(quote!(shadow = "on"), "`shadow` is a flag");
    refused(quote!(min_key = 0), "from 1 to 255");
    refused(quote!(min_key = 256), "from 1 to 255");
    refused(quote!(ttl = "0s"), "`ttl` must be longer than zero");
    refused(quote!(scope = "x"), "scope = global");
    refused(quote!(scope = 1), "scope = global");
    refused(quote!(scope = ()), "scope = global");
    refused(quote!(scope = header()), "`header` takes one name");
    refused(quote!(scope = header(user)), "header name in quotes");
    refused(quote!(scope = (user.id, header("X"))), "only `path` may be beside");
    refused(quote!(scope = (global, header("X"))), "write one of the two");
    refused(quote!(scope = (header("X"), header("Y"))), "one header at most");
    refused(quote!(scope = (path, path)), "`path` is part of the scope already");
    for constant in
        [quote!(("orders", "v1")), quote!(("orders")), quote!({ "orders" }), quote!(SCOPE), quote!((path, 1))]
    {
        refused(quote!(scope = #constant), "uses no argument of the handler");
    }
    refused(quote!(scope = user.id().await), "cannot use `.await`, `?` or `return`");
    refused(quote!(scope = (1, user.id()?)), "cannot use `.await`, `?` or `return`");
    refused(quote!(in_flight = rejct), "did you mean `reject`?");
    refused(quote!(in_flight = wiat), "did you mean `wait(\"5s\")`?");
    refused(quote!(in_flight = "wait"), "write one of `reject`, `reject(423)` and `wait(\"5s\")`");
    refused(quote!(in_flight = "reject"), "remove the quotes: write `reject`");
    refused(quote!(in_flight = 423), "write for example `reject(423)`");
    refused(quote!(in_flight = (reject)), "parentheses");
    refused(quote!(in_flight = a::b), "write one of `reject`, `reject(423)` and `wait(\"5s\")`");
    refused(quote!(in_flight = reject(300)), "from 400 to 599, or from 200 to 299");
    refused(quote!(in_flight = reject(199)), "from 400 to 599, or from 200 to 299");
    refused(quote!(in_flight = reject(600)), "from 400 to 599, or from 200 to 299");
    refused(quote!(in_flight = reject("423")), "remove the quotes: write `423`");
    refused(quote!(required = false), "remove the option");
    refused(quote!(shadow = false), "remove the option");
    refused(quote!(ttl = TTL), "write `policy = POLICY`");
    refused(quote!(max_response = LIMIT), "write `policy = POLICY`");
    refused(quote!(timeout = "0s"), "`timeout` must be longer than zero");
    refused(quote!(timeout = 30), "write `timeout = \"30s\"`");
    refused(quote!(ttl = "1M"), "minutes or months");
    refused(quote!(fingerprint = none + body), "`none` is written alone");
    refused(quote!(key = "orders"), "uses no argument");
    refused(quote!(key = event.id().await), "`key` cannot use `.await`");
    refused(quote!(in_flight = reject()), "`reject` takes one status");
    for (option, right) in [
        (quote!(wait = "5s"), "`wait` is a value, and no option: write `in_flight = wait(\"5s\")`"),
        (quote!(wait("5s")), "write `in_flight = wait(\"5s\")`"),
        (quote!(reject), "write `in_flight = reject`"),
        (quote!(rerun), "write `abandoned = rerun`"),
        (quote!(refuse), "write `abandoned = refuse`"),
    ] {
        refused(option, right);
    }
    refused(quote!(in_flight = wait), "`wait` needs a duration");
    refused(quote!(in_flight = wait(5)), "write `wait(\"5s\")`");
    refused(quote!(in_flight = wait("0s")), "in_flight = reject");
    refused(quote!(mismatch = 200), "from 400 to 599");
    refused(quote!(replay_status = 199), "from 200 to 599");
    refused(quote!(replay = status, replay_status = 200), "add `body`");
    refused(quote!(replay_header = "none"), "remove the quotes");
    refused(quote!(replay_header = nothing), "a header name in quotes, or `none`");
    refused(quote!(replay_header = 1), "a header name in quotes, or `none`");
    refused(quote!(replay_header = ""), "must not be empty");
    refused(quote!(abandoned = retry), "unknown value `retry`");
    refused(quote!(abandoned = "refuse"), "remove the quotes");
    refused(quote!(abandoned = rerun()), "takes no arguments");
    refused(quote!(max_response = "0"), "larger than zero");
    refused(quote!(errors = "render"), "remove the quotes");
    refused(quote!(policy = Policy::new()), "const POLICY");
}

#[test]
fn headers_added_to_replays() {
    chain(
        quote!(replay_with = header("X-A", "1")),
        r#".replay_with({constHEADERS:&[AddedHeader]=&[AddedHeader::new("x-a","1")];HEADERS})"#,
    );
    chain(
        quote!(replay_with = header("X-A", "no way", server_error - 503) + header("X-B", "2")),
        r#".replay_with({constHEADERS:&[AddedHeader]=&[AddedHeader::new("x-a","noway").on(Statuses::SERVER_ERROR.minus(Statuses::of(503))),AddedHeader::new("x-b","2")];HEADERS})"#,
    );
    refused(quote!(replay_with = "X-A"), "expected a header");
    refused(quote!(replay_with = header("X-A")), "takes a name, a value and, optionally");
    refused(quote!(replay_with = header("X A", "1")), "is not allowed in a header name");
    refused(quote!(replay_with = header("X-A", "a\r\nSet-Cookie: b")), "is not allowed in a header value");
    refused(quote!(replay_with = header("X-A", "1", 500 - 500)), "leaves no status");
}
