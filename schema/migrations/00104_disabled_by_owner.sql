-- +goose Up

-- What an operator has disabled the owner of a device's group does not enable. What was
-- disabled before, or with plain SQL, counts as disabled by an operator.
ALTER TABLE accounts ADD COLUMN disabled_by_owner boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN accounts.disabled_by_owner IS 'A device whose group''s owner has disabled it, and may enable it again';
