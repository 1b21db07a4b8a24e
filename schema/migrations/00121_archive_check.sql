-- +goose NO TRANSACTION
-- +goose Up

-- The second step: the rows that are there are held against the bound, and the index of a
-- partition on its time is made. Both read the table, for minutes if it is large, while
-- everybody reads and writes it. What was interrupted is done again.

-- +goose StatementBegin
DO $$
DECLARE
    bound name := (SELECT conname FROM pg_constraint WHERE conrelid = 'messages'::regclass AND conname LIKE 'messages\_until\_%' AND NOT convalidated);
BEGIN
    IF bound IS NOT NULL THEN
        EXECUTE format('ALTER TABLE messages VALIDATE CONSTRAINT %I', bound);
    END IF;
END $$;
-- +goose StatementEnd

-- What was left behind where it was interrupted. Nobody waits for this.
DROP INDEX CONCURRENTLY IF EXISTS messages_sent_at_range;

-- By blocks of the table: a few kilobytes for millions of rows.
CREATE INDEX CONCURRENTLY messages_sent_at_range ON messages USING brin (sent_at) WITH (autosummarize = on);
