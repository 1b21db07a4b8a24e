-- +goose Up

-- Ids of people are not references to accounts: a token of another issuer is
-- truth (PROTOCOL.md), so its subject may be in groups and have contacts before
-- it has an account here. Every change to a right is told to the feed (changes,
-- 00010) by triggers, a statement at a time, so that plain SQL counts like the API.

-- What a person lets others do. NULL is the server's default.
ALTER TABLE accounts
    ADD COLUMN write_policy    text CHECK (write_policy IN ('anyone', 'contacts')),
    ADD COLUMN presence_policy text CHECK (presence_policy IN ('anyone', 'acquainted', 'nobody'));
COMMENT ON COLUMN accounts.write_policy IS 'Who may write to user/<id>; NULL: the server''s default';
COMMENT ON COLUMN accounts.presence_policy IS 'Who may see presence/<id>: acquainted are contacts and members of a common group; NULL: acquainted';

-- +goose StatementBegin
CREATE FUNCTION accounts_policy_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM record_change('rights', NEW.id);
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER accounts_policy_changed AFTER UPDATE ON accounts
    FOR EACH ROW WHEN (OLD.write_policy IS DISTINCT FROM NEW.write_policy OR OLD.presence_policy IS DISTINCT FROM NEW.presence_policy)
    EXECUTE FUNCTION accounts_policy_changed();

-- Who can sign in here has the server's defaults, the subjects of other issuers'
-- tokens have none: see package directory.
-- +goose StatementBegin
CREATE FUNCTION identities_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO changes (kind, subject) SELECT DISTINCT 'rights', account FROM touched;
    IF FOUND THEN
        PERFORM pg_notify('mynah_change', '');
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER identities_inserted AFTER INSERT ON identities REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION identities_changed();
CREATE TRIGGER identities_deleted AFTER DELETE ON identities REFERENCING OLD TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION identities_changed();

-- The broker's directory reads what was revoked by account.
CREATE INDEX revocations_account ON revocations (account);

-- Which database this is: what a broker has kept of another one is not used.
CREATE TABLE database_identity (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    id  uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO database_identity DEFAULT VALUES;

-- Contacts, from the owner's side. A request makes two rows (asked, incoming), an
-- acceptance makes both 'contact', a removal deletes both. If the peer has blocked
-- the owner, a request makes the owner's row only, so that nothing tells of it.
CREATE TABLE contacts (
    owner  text        NOT NULL CHECK (octet_length(owner) BETWEEN 1 AND 64 AND owner !~ '[^A-Za-z0-9_.~-]'),
    peer   text        NOT NULL CHECK (octet_length(peer) BETWEEN 1 AND 64 AND peer !~ '[^A-Za-z0-9_.~-]'),
    state  text        NOT NULL CHECK (state IN ('asked', 'incoming', 'contact')),
    note   text        NOT NULL DEFAULT '' CHECK (char_length(note) <= 200), -- of the request
    remark text        NOT NULL DEFAULT '' CHECK (char_length(remark) <= 64), -- what the owner calls the peer
    since  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, peer),
    CHECK (owner <> peer)
);
CREATE INDEX contacts_state ON contacts (owner, state, peer);
CREATE INDEX contacts_requests ON contacts (owner, state, since, peer) WHERE state <> 'contact';
CREATE INDEX contacts_peer ON contacts (peer, owner);

CREATE TABLE blocks (
    owner text        NOT NULL CHECK (octet_length(owner) BETWEEN 1 AND 64 AND owner !~ '[^A-Za-z0-9_.~-]'),
    peer  text        NOT NULL CHECK (octet_length(peer) BETWEEN 1 AND 64 AND peer !~ '[^A-Za-z0-9_.~-]'), -- may not write to owner
    since timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, peer),
    CHECK (owner <> peer)
);
CREATE INDEX blocks_peer ON blocks (peer, owner);

-- +goose StatementBegin
CREATE FUNCTION owner_rights_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO changes (kind, subject) SELECT DISTINCT 'rights', owner FROM touched;
    IF FOUND THEN
        PERFORM pg_notify('mynah_change', '');
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER contacts_inserted AFTER INSERT ON contacts REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION owner_rights_changed();
CREATE TRIGGER contacts_updated AFTER UPDATE ON contacts REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION owner_rights_changed();
CREATE TRIGGER contacts_deleted AFTER DELETE ON contacts REFERENCING OLD TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION owner_rights_changed();
CREATE TRIGGER blocks_inserted AFTER INSERT ON blocks REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION owner_rights_changed();
CREATE TRIGGER blocks_deleted AFTER DELETE ON blocks REFERENCING OLD TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION owner_rights_changed();

-- A group is never deleted, so that its id is never given to another one.
CREATE TABLE groups (
    id           text PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 64 AND id !~ '[^A-Za-z0-9_.~-]'),
    name         text        NOT NULL DEFAULT '' CHECK (char_length(name) <= 64),
    avatar       text        NOT NULL DEFAULT '' CHECK (octet_length(avatar) <= 1024),
    announcement text        NOT NULL DEFAULT '' CHECK (char_length(announcement) <= 2000),
    ext          jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(ext) = 'object' AND octet_length(ext::text) <= 16384),
    join_policy  text        NOT NULL DEFAULT 'invitation' CHECK (join_policy IN ('open', 'approval', 'invitation')),
    muted        boolean     NOT NULL DEFAULT false, -- only the owner and admins may speak
    members      integer     NOT NULL DEFAULT 0 CHECK (members >= 0), -- kept by triggers
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    dissolved_at timestamptz
);
-- Dissolved groups whose members have not been removed yet: they are to get the
-- notice about it first.
CREATE INDEX groups_dissolved ON groups (id) WHERE dissolved_at IS NOT NULL AND members > 0;
COMMENT ON COLUMN groups.join_policy IS 'open: whoever subscribes to group/<id> becomes a member (a room)';

-- +goose StatementBegin
CREATE FUNCTION groups_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM record_change('rights', '', NEW.id);
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER groups_inserted AFTER INSERT ON groups FOR EACH ROW EXECUTE FUNCTION groups_changed();
CREATE TRIGGER groups_updated AFTER UPDATE ON groups
    FOR EACH ROW WHEN (OLD.muted <> NEW.muted OR OLD.join_policy <> NEW.join_policy OR OLD.dissolved_at IS DISTINCT FROM NEW.dissolved_at)
    EXECUTE FUNCTION groups_changed();

CREATE TABLE members (
    grp         text        NOT NULL REFERENCES groups (id),
    account     text        NOT NULL CHECK (octet_length(account) BETWEEN 1 AND 64 AND account !~ '[^A-Za-z0-9_.~-]'),
    role        text        NOT NULL DEFAULT 'member' CHECK (role IN ('owner', 'admin', 'member')),
    nickname    text        NOT NULL DEFAULT '' CHECK (char_length(nickname) <= 64),
    muted_until timestamptz, -- may not speak before
    joined_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (grp, account)
);
CREATE INDEX members_account ON members (account, grp);
CREATE UNIQUE INDEX members_owner ON members (grp) WHERE role = 'owner';
CREATE INDEX members_staff ON members (grp, joined_at, account) WHERE role = 'admin';

-- +goose StatementBegin
CREATE FUNCTION members_joined() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO changes (kind, subject, grp) SELECT 'joined', account, grp FROM touched;
    IF FOUND THEN
        PERFORM pg_notify('mynah_change', '');
        -- In the order of ids, so that two statements cannot wait for each other.
        PERFORM FROM groups WHERE id IN (SELECT grp FROM touched) ORDER BY id FOR NO KEY UPDATE;
        UPDATE groups SET members = members + t.n
        FROM (SELECT grp, count(*) AS n FROM touched GROUP BY grp) t WHERE id = t.grp;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION members_left() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO changes (kind, subject, grp) SELECT 'left', account, grp FROM touched;
    IF FOUND THEN
        PERFORM pg_notify('mynah_change', '');
        PERFORM FROM groups WHERE id IN (SELECT grp FROM touched) ORDER BY id FOR NO KEY UPDATE;
        UPDATE groups SET members = members - t.n
        FROM (SELECT grp, count(*) AS n FROM touched GROUP BY grp) t WHERE id = t.grp;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION members_rights_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO changes (kind, subject)
    SELECT DISTINCT 'rights', n.account FROM touched n JOIN before o USING (grp, account)
    WHERE n.role <> o.role OR n.muted_until IS DISTINCT FROM o.muted_until;
    IF FOUND THEN
        PERFORM pg_notify('mynah_change', '');
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION members_key_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a membership''s group and account do not change: delete it and insert another';
END $$;
-- +goose StatementEnd
CREATE TRIGGER members_joined AFTER INSERT ON members REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION members_joined();
CREATE TRIGGER members_left AFTER DELETE ON members REFERENCING OLD TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION members_left();
CREATE TRIGGER members_rights_changed AFTER UPDATE ON members REFERENCING NEW TABLE AS touched OLD TABLE AS before
    FOR EACH STATEMENT EXECUTE FUNCTION members_rights_changed();
CREATE TRIGGER members_key_stays BEFORE UPDATE ON members
    FOR EACH ROW WHEN (OLD.grp <> NEW.grp OR OLD.account <> NEW.account) EXECUTE FUNCTION members_key_stays();

-- Who may not come back, and may not use a token that says it is a member.
CREATE TABLE bans (
    grp     text        NOT NULL REFERENCES groups (id),
    account text        NOT NULL CHECK (octet_length(account) BETWEEN 1 AND 64 AND account !~ '[^A-Za-z0-9_.~-]'),
    by      text        NOT NULL DEFAULT '',
    reason  text        NOT NULL DEFAULT '' CHECK (char_length(reason) <= 200),
    at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (grp, account)
);
CREATE INDEX bans_account ON bans (account, grp);

-- A ban made by SQL removes the membership as well; one who is in the group by
-- token only has left it, too.
-- +goose StatementBegin
CREATE FUNCTION bans_made() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM members m USING touched t WHERE m.grp = t.grp AND m.account = t.account;
    INSERT INTO changes (kind, subject, grp) SELECT 'left', account, grp FROM touched;
    IF FOUND THEN
        PERFORM pg_notify('mynah_change', '');
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION bans_lifted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO changes (kind, subject) SELECT DISTINCT 'rights', account FROM touched;
    IF FOUND THEN
        PERFORM pg_notify('mynah_change', '');
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER bans_made AFTER INSERT ON bans REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION bans_made();
CREATE TRIGGER bans_lifted AFTER DELETE ON bans REFERENCING OLD TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION bans_lifted();

-- Requests to be let into a group (join_policy approval).
CREATE TABLE join_requests (
    grp     text        NOT NULL REFERENCES groups (id),
    account text        NOT NULL CHECK (octet_length(account) BETWEEN 1 AND 64 AND account !~ '[^A-Za-z0-9_.~-]'),
    note    text        NOT NULL DEFAULT '' CHECK (char_length(note) <= 200),
    at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (grp, account)
);
CREATE INDEX join_requests_at ON join_requests (grp, at, account);
CREATE INDEX join_requests_account ON join_requests (account);

-- Invitations of one person, who may join with it whatever the policy.
CREATE TABLE invitations (
    grp        text        NOT NULL REFERENCES groups (id),
    account    text        NOT NULL CHECK (octet_length(account) BETWEEN 1 AND 64 AND account !~ '[^A-Za-z0-9_.~-]'),
    by         text        NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (grp, account)
);
CREATE INDEX invitations_account ON invitations (account, grp);
CREATE INDEX invitations_expires ON invitations (expires_at);

-- Invitation links: whoever has the token may join while it is valid.
CREATE TABLE invitation_links (
    id         text PRIMARY KEY,
    grp        text        NOT NULL REFERENCES groups (id),
    token      bytea       NOT NULL UNIQUE CHECK (octet_length(token) = 32), -- SHA-256 of 128 random bits
    by         text        NOT NULL,
    uses       integer     NOT NULL DEFAULT 0,
    max_uses   integer     CHECK (max_uses > 0), -- NULL: as many as there is room for
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    CHECK (uses <= max_uses)
);
CREATE INDEX invitation_links_grp ON invitation_links (grp, id);
CREATE INDEX invitation_links_expires ON invitation_links (expires_at);

-- Notices on their way to the log. A row is written in the transaction that makes
-- the change and deleted when the broker has acknowledged the message; mid makes
-- sure that it is in the log once, whatever crashes in between.
CREATE TABLE outbox (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mid        text        NOT NULL DEFAULT gen_random_uuid()::text UNIQUE,
    topic      text        NOT NULL,
    type       text        NOT NULL,
    body       jsonb       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_topic ON outbox (topic);

-- +goose StatementBegin
CREATE FUNCTION outbox_filled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('mynah_outbox', '');
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER outbox_filled AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION outbox_filled();
