-- +goose Up

-- What a device, or a service, has made ends with it: who has stolen its token must not
-- keep what they made with it. This is for every way of disabling or deleting one, plain
-- SQL included; what was made by what it made follows by the same trigger. To enable it
-- again enables nothing else.
CREATE INDEX devices_created_by ON devices (created_by);

-- +goose StatementBegin
CREATE FUNCTION devices_disable_made() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE accounts SET disabled_at = now(), updated_at = now(), disabled_by_owner = NEW.disabled_by_owner
    WHERE id IN (SELECT account FROM devices WHERE created_by = NEW.id) AND disabled_at IS NULL AND deleted_at IS NULL;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER devices_disable_made AFTER UPDATE ON accounts
    FOR EACH ROW WHEN (NEW.kind <> 'user' AND (NEW.disabled_at IS NOT NULL AND OLD.disabled_at IS NULL
        OR NEW.deleted_at IS NOT NULL AND OLD.deleted_at IS NULL))
    EXECUTE FUNCTION devices_disable_made();

-- The same for those that are disabled or deleted already. The trigger does the rest.
UPDATE accounts SET disabled_at = now(), updated_at = now(), disabled_by_owner = false
WHERE disabled_at IS NULL AND deleted_at IS NULL AND id IN (
    SELECT d.account FROM devices d JOIN accounts maker ON maker.id = d.created_by
    WHERE maker.kind <> 'user' AND (maker.disabled_at IS NOT NULL OR maker.deleted_at IS NOT NULL));

-- Devices are members only. The groups that they own go to the successor that an owner's
-- account which is deleted would have: the admin who joined first, else the member who
-- did, and only to a person. Where there is none, the group is left without an owner, for
-- an operator to transfer: its members go on.
CREATE TEMPORARY TABLE owned_by_devices ON COMMIT DROP AS
SELECT m.grp, m.account FROM members m JOIN accounts a ON a.id = m.account JOIN groups g ON g.id = m.grp
WHERE m.role = 'owner' AND a.kind = 'device' AND g.dissolved_at IS NULL;

UPDATE members SET role = 'member' FROM accounts a
WHERE a.id = members.account AND a.kind = 'device' AND members.role <> 'member';

WITH heirs AS (
    SELECT DISTINCT ON (m.grp) m.grp, m.account
    FROM owned_by_devices o JOIN members m ON m.grp = o.grp LEFT JOIN accounts a ON a.id = m.account
    WHERE coalesce(a.kind = 'user' AND a.disabled_at IS NULL AND a.deleted_at IS NULL, true)
    ORDER BY m.grp, m.role = 'admin' DESC, m.joined_at, m.account),
made AS (
    UPDATE members SET role = 'owner' FROM heirs h
    WHERE members.grp = h.grp AND members.account = h.account
    RETURNING members.grp, members.account)
INSERT INTO outbox (topic, type, body)
SELECT 'group/' || m.grp, 'notice.group.transferred', jsonb_build_object('group', m.grp, 'by', o.account, 'who', m.account)
FROM made m JOIN owned_by_devices o ON o.grp = m.grp ORDER BY m.grp;
