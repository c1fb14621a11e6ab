-- {table}, {index}: the names of the table and of its index, quoted.

-- One row for each key: a claim while `record` is null, a record from then on.
CREATE TABLE {table} (
    -- SHA-256 over scope and key; what a client sends never gets here.
    key bytea PRIMARY KEY CHECK (octet_length(key) = 32),
    -- Whose claim it is, or was: every change compares it.
    owner bytea NOT NULL CHECK (octet_length(owner) = 16),
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32),
    -- From then on the claim is abandoned.
    lease_until timestamptz NOT NULL,
    -- From then on the row counts as gone.
    expires_at timestamptz NOT NULL,
    -- Somebody waits for the end of the claim, and wants to be told.
    awaited boolean NOT NULL DEFAULT false,
    -- The answer, with a checksum over it.
    record bytea
);

-- For the cleanup.
CREATE INDEX {index} ON {table} (expires_at);
