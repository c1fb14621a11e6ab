-- {table}, {claim}, {complete}: the names of the table and of two functions, with their schema. {index}: that of the index, without.

-- One row for each key: a claim while `record` is null, a record from then on. The order of the columns keeps the log of the server
-- short: what an update does not change comes first and last.
CREATE TABLE {table} (
    -- SHA-256 over scope and key; what a client sends is never stored here. No column has a CHECK: the server reads its text again for
    -- each statement that writes, and the store checks what it reads.
    key bytea PRIMARY KEY,
    -- The token of the owner: every change compares it.
    owner bytea NOT NULL,
    fingerprint bytea NOT NULL,
    -- When the cleanup looks at the row: the expiry that the claim began with. Only this time is indexed. So renewals and completions
    -- leave the index alone, and the cleanup moves it if the row has not expired by then.
    clean_after timestamptz NOT NULL,
    -- How often the record was replayed, if the store counts.
    replays bigint NOT NULL DEFAULT 0,
    -- From then on the claim is abandoned.
    lease_until timestamptz NOT NULL,
    -- From then on the row counts as absent.
    expires_at timestamptz NOT NULL,
    -- A request waits for the end of the claim, and wants to be notified.
    awaited boolean NOT NULL DEFAULT false,
    -- The response, with a checksum.
    record bytea,
    -- What is known of the execution that holds the claim, or left the record, for operators.
    info bytea
) WITH (fillfactor = 50); -- The rest of a page is room for updates.

-- For the cleanup.
CREATE INDEX {index} ON {table} (clean_after);

-- The server plans the statements of a function once for each session, and those of a transaction each time they are sent.

-- Claims a key in a transaction of a handler. Returns a row of NULLs if it got the claim, the row of the key if that is in the way, and
-- no row if another transaction holds the key. Of a record with another fingerprint, which may be long, it returns the info in the place
-- of the record, and no `has_expired`.
CREATE OR REPLACE FUNCTION {claim}(
    new_key bytea, new_owner bytea, new_fingerprint bytea, lease bigint, retention bigint, new_info bytea,
    -- What tells others the policy: see `policy_lock` in the crate. NULL without a policy.
    endpoint int, policy int,
    -- What tells the locks of this table from those of others.
    salt bigint
) RETURNS TABLE (found_owner bytea, found_fingerprint bytea, found_record bytea, has_expired boolean) LANGUAGE plpgsql
-- Less than a step of a transaction may take: when the store gives up, the statement must not wait on at the server.
SET lock_timeout = '4s' AS $$
DECLARE
    got_lock boolean;
BEGIN
    -- The shared locks are never waited for, and come first: see `statements` in the crate.
    PERFORM pg_advisory_xact_lock_shared(
            (hashtextextended(encode(new_key, 'hex'), salt) & 2147483647)::int,
            (hashtextextended(encode(new_fingerprint, 'hex'), salt) & 2147483647)::int
        ),
        pg_advisory_xact_lock_shared(endpoint, policy);
    got_lock := pg_try_advisory_xact_lock(hashtextextended(encode(new_key, 'hex'), salt));
    IF got_lock THEN
        INSERT INTO {table} (key, owner, fingerprint, clean_after, lease_until, expires_at, info)
        VALUES (
            new_key, new_owner, new_fingerprint, clock_timestamp() + retention * interval '1 microsecond',
            clock_timestamp() + lease * interval '1 microsecond', clock_timestamp() + retention * interval '1 microsecond', new_info
        )
        ON CONFLICT (key) DO NOTHING;
        IF FOUND THEN
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    RETURN QUERY SELECT owner, fingerprint,
        CASE WHEN fingerprint = new_fingerprint OR record IS NULL THEN record ELSE info END,
        CASE WHEN fingerprint = new_fingerprint OR record IS NULL THEN lease_until <= clock_timestamp() END
    FROM {table} WHERE key = new_key AND expires_at > clock_timestamp();
    IF got_lock AND NOT FOUND THEN
        UPDATE {table} SET owner = new_owner, fingerprint = new_fingerprint,
            clean_after = clock_timestamp() + retention * interval '1 microsecond',
            lease_until = clock_timestamp() + lease * interval '1 microsecond',
            expires_at = clock_timestamp() + retention * interval '1 microsecond',
            awaited = false, record = NULL, info = new_info, replays = 0
        WHERE key = new_key AND expires_at <= clock_timestamp();
        IF FOUND THEN
            RETURN NEXT;
        END IF;
    END IF;
END
$$;

-- Records the response in the transaction that has made the claim, and returns whether the claim was there.
CREATE OR REPLACE FUNCTION {complete}(claimed_key bytea, claiming_owner bytea, new_record bytea, ttl bigint)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE {table} SET record = new_record, expires_at = clock_timestamp() + ttl * interval '1 microsecond'
    WHERE key = claimed_key AND owner = claiming_owner AND record IS NULL;
    RETURN FOUND;
END
$$;
