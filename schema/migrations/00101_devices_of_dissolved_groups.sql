-- +goose Up

-- The devices of a group end with it: its owner, who alone could take their
-- credentials away, is not there any more. This is for the groups that were dissolved
-- before that was so; social.dissolve does it from now on.
UPDATE device_credentials SET revoked_at = now()
WHERE revoked_at IS NULL AND account IN (
    SELECT d.account FROM devices d JOIN groups g ON g.id = d.grp WHERE g.dissolved_at IS NOT NULL);
