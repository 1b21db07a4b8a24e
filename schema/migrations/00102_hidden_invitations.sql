-- +goose Up

-- An invitation by somebody whom the invited one has blocked is kept, so that the list
-- of a group's invitations does not tell of the block.
ALTER TABLE invitations ADD COLUMN hidden boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN invitations.hidden IS 'The invited one has blocked whoever invited them: they do not see it and cannot join by it';
