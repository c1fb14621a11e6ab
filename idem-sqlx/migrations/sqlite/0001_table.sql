-- {table}, {index}: the names of the table and of its index, quoted.

-- One row for each key: a claim while `record` is null, a record from then on. Times are milliseconds since 1970.
CREATE TABLE {table} (
    -- SHA-256 over scope and key; what a client sends is never stored here.
    key BLOB NOT NULL PRIMARY KEY CHECK (length(key) = 32),
    -- The token of the owner: every change compares it.
    owner BLOB NOT NULL CHECK (length(owner) = 16),
    fingerprint BLOB NOT NULL CHECK (length(fingerprint) = 32),
    -- From then on the claim is abandoned.
    lease_until INTEGER NOT NULL,
    -- From then on the row counts as absent.
    expires_at INTEGER NOT NULL,
    -- The response, with a checksum.
    record BLOB,
    -- What is known of the execution that holds the claim, or left the record, for operators.
    info BLOB,
    -- How often the record was replayed, if the store counts.
    replays INTEGER NOT NULL DEFAULT 0
) STRICT;

-- For the cleanup.
CREATE INDEX {index} ON {table} (expires_at);
