-- +goose Up

-- A signing key that verifies no more from one moment to the next has been stolen, or may
-- have been: brokers look anew at who is connected with what it signed. (A key that is
-- retired expires later than all that it has signed, and ends nothing.)
-- +goose StatementBegin
CREATE FUNCTION signing_keys_distrusted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM record_change('all', '');
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER signing_keys_distrusted AFTER UPDATE ON signing_keys
    FOR EACH ROW WHEN (NEW.expires_at <= now() AND (OLD.expires_at IS NULL OR OLD.expires_at > now()))
    EXECUTE FUNCTION signing_keys_distrusted();
