-- +goose Up

-- A way to sign in that was linked while its account was being deleted stayed, so that
-- a phone number could not be used again. This frees those; accounts locks the account
-- from now on.
DELETE FROM identities i USING accounts a WHERE a.id = i.account AND a.deleted_at IS NOT NULL;
UPDATE accounts SET write_policy = NULL, presence_policy = NULL
WHERE deleted_at IS NOT NULL AND (write_policy IS NOT NULL OR presence_policy IS NOT NULL);
