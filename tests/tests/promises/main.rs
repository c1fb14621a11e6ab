//! The guarantees of the README, black box: over real sockets and over the router. A folder for each.

/// 1. Once: the handler starts at most once, whatever arrives.
mod once {
    mod cancellation;
    mod concurrency;
    mod interrupted_upload;
    mod panics;
}

/// 2. To the end: the handler runs to its end and is recorded, even if the client disconnects.
mod to_the_end {
    mod disconnect;
    mod shutdown;
}

/// 3. The same bytes: a replay has the recorded status, headers, body and trailers.
mod same_bytes {
    mod framing;
    mod headers_left_out;
    mod not_replayable;
    mod recording;
    mod replay;
    mod streams;
}

/// 4. Never another caller's: a record is only for the caller, the endpoint and the request that it was made for.
mod isolation {
    mod authority;
    mod callers;
    mod endpoints;
    mod fingerprint;
    mod fingerprint_none;
    mod mismatch;
    mod policy_versions;
    mod scope_path;
    mod scope_path_policies;
    mod scopes;
    mod vary;
}

/// 5. Extractors first: every extractor runs on every request, and a request that it rejects does not use up the key.
mod arguments_first {
    mod on_replays;
    mod rejections;
}

/// 6. Refuse rather than guess: if the promise cannot be kept, the handler does not run.
mod refuse {
    mod abandoned;
    mod failing_stores;
    mod keys;
    mod limits;
    mod missing_layer;
    mod problem_details;
}
