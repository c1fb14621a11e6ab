-- {table}, {index}: the names of the table and of its index, quoted.

-- One row for each key: a claim while `record` is null, a record from then on. The order of the columns keeps the log of the server
-- short: what an update does not change comes first and last.
CREATE TABLE {table} (
    -- SHA-256 over scope and key; what a client sends is never stored here.
    key bytea PRIMARY KEY CHECK (octet_length(key) = 32),
    -- The token of the owner: every change compares it.
    owner bytea NOT NULL CHECK (octet_length(owner) = 16),
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32),
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
