-- {table}: the name of the table, quoted.

-- Where the execution of a claim comes from, for operators; a record has it inside.
ALTER TABLE {table} ADD COLUMN IF NOT EXISTS origin bytea;

-- How often a record was replayed, where somebody counts.
ALTER TABLE {table} ADD COLUMN IF NOT EXISTS replays bigint NOT NULL DEFAULT 0;
