-- +goose Up

-- The feed of changes to rights. Triggers write it, so that a change made with
-- plain SQL counts like one made through the API. Readers follow it to keep
-- their caches right (authhook.Directory).
--
-- How to read it without missing anything. Neither id nor xid alone will do as
-- "the last one I saw": two transactions commit in another order than they took
-- their numbers. But every transaction below the oldest one still running
-- (pg_snapshot_xmin) has ended, so nothing can appear there any more. A reader
-- keeps that horizon as its cursor, reads all rows with xid >= cursor, handles
-- those whose id it has not handled yet, and moves the cursor to the horizon
-- that the same snapshot reported. Changes are seen as soon as they are
-- committed; a transaction that stays open for long costs re-reading, never a
-- miss. A cursor that is not above changes_trimmed.xid when that has moved since
-- the last reading, or that is above the current xid (the database was restored
-- into another cluster), means: read everything anew. Package api/changes does all
-- this.
CREATE TABLE changes (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid     xid8        NOT NULL DEFAULT pg_current_xact_id(),
    kind    text        NOT NULL CHECK (kind IN ('joined', 'left', 'rights', 'disabled', 'all')),
    subject text        NOT NULL DEFAULT '', -- account id; '' for everybody (rights, all)
    grp     text        NOT NULL DEFAULT '', -- group id (joined, left)
    session text        NOT NULL DEFAULT '', -- sid claim (disabled): only what was opened with it ends; '' for all
    at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX changes_xid ON changes (xid, id);
CREATE INDEX changes_at ON changes (at);
COMMENT ON TABLE changes IS 'Feed of changes to rights, trimmed after a day; see 00010_accounts.sql for how to read it';

CREATE TABLE changes_trimmed (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    xid xid8 NOT NULL -- every row up to it may have been deleted
);
INSERT INTO changes_trimmed (xid) VALUES ('0');

-- +goose StatementBegin
CREATE FUNCTION record_change(kind text, subject text, grp text DEFAULT '', session text DEFAULT '')
RETURNS void LANGUAGE sql AS $$
    INSERT INTO changes (kind, subject, grp, session) VALUES (kind, subject, grp, session);
    -- One wake-up a transaction: equal payloads are folded into one.
    SELECT pg_notify('mynah_change', '');
$$;
-- +goose StatementEnd

-- People, devices and services: everything that can be the subject of a token.
-- A row is never deleted, so that an id is never given to anybody else.
CREATE TABLE accounts (
    id            text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9_.~-]{1,64}$'),
    kind          text        NOT NULL DEFAULT 'user' CHECK (kind IN ('user', 'device', 'service')),
    name          text        NOT NULL DEFAULT '' CHECK (char_length(name) <= 64),
    avatar        text        NOT NULL DEFAULT '' CHECK (octet_length(avatar) <= 1024), -- https URL or media id
    ext           jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(ext) = 'object' AND octet_length(ext::text) <= 16384),
    find_by_id    boolean     NOT NULL DEFAULT true,  -- strangers may find the profile by exact id
    find_by_phone boolean     NOT NULL DEFAULT false, -- … by a linked phone number
    find_by_mail  boolean     NOT NULL DEFAULT false, -- … by a linked mail address
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    seen_at       timestamptz,                        -- last time a token of it was used; kept to the minute
    disabled_at   timestamptz,
    deleted_at    timestamptz
);
-- Nobody registers an id that differs from another's in upper and lower case only:
-- people could not tell them apart.
CREATE INDEX accounts_lower ON accounts (lower(id));
COMMENT ON COLUMN accounts.deleted_at IS 'The name, the identities and the devices are gone; the row stays so that the id is not used again';

-- Ways to sign in. One account may have several; one identity has one account.
CREATE TABLE identities (
    provider   text        NOT NULL CHECK (provider IN ('password', 'phone', 'mail', 'wechat') OR provider ~ '^oidc:[a-z0-9-]{1,32}$'),
    subject    text        NOT NULL CHECK (octet_length(subject) BETWEEN 1 AND 320), -- account id, +E.164, mail in lower case, openid, sub
    alias      text        CHECK (octet_length(alias) BETWEEN 1 AND 320),            -- WeChat's unionid
    account    text        NOT NULL REFERENCES accounts (id),
    secret     text,                                                                -- argon2id hash (password)
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (provider, subject),
    CHECK ((provider = 'password') = (secret IS NOT NULL))
);
CREATE UNIQUE INDEX identities_account ON identities (account, provider); -- one of each kind
CREATE UNIQUE INDEX identities_alias ON identities (provider, alias) WHERE alias IS NOT NULL;

-- Signed-in devices. A session is a family of refresh tokens: family stays for
-- its life, token changes at every use. Both are SHA-256 of 256 random bits.
CREATE TABLE sessions (
    id          text PRIMARY KEY,                 -- the sid claim
    account     text        NOT NULL REFERENCES accounts (id),
    method      text        NOT NULL,             -- the identity's provider
    device      text        NOT NULL DEFAULT '' CHECK (char_length(device) <= 64),
    address     text        NOT NULL DEFAULT '',  -- of the last use
    family      bytea       NOT NULL UNIQUE CHECK (octet_length(family) = 32),
    token       bytea       NOT NULL CHECK (octet_length(token) = 32),
    -- The rotation before: its token's hash, and its answer sealed with that
    -- token itself, so that a client that lost the answer gets the same again.
    last_token  bytea       CHECK (octet_length(last_token) = 32),
    last_answer bytea,
    rotated_at  timestamptz NOT NULL DEFAULT now(),
    created_at  timestamptz NOT NULL DEFAULT now(), -- when the person proved who they are
    used_at     timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL
);
CREATE INDEX sessions_account ON sessions (account, created_at, id);
CREATE INDEX sessions_expires ON sessions (expires_at);

-- Tokens that are refused although they have not expired, by their sid claim: a
-- session, or a device's credential.
CREATE TABLE revocations (
    session    text PRIMARY KEY,
    account    text        NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL -- from then on the tokens are refused for their exp alone
);
CREATE INDEX revocations_expires ON revocations (expires_at);

-- +goose StatementBegin
CREATE FUNCTION revocations_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM record_change('disabled', NEW.account, '', NEW.session);
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER revocations_changed AFTER INSERT ON revocations
    FOR EACH ROW EXECUTE FUNCTION revocations_changed();

-- A session that is deleted, by whomever, revokes its tokens. 20 minutes: what
-- an access token lives (15) and what clocks may differ.
-- +goose StatementBegin
CREATE FUNCTION sessions_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO revocations (session, account, expires_at)
    VALUES (OLD.id, OLD.account, now() + interval '20 minutes')
    ON CONFLICT (session) DO NOTHING;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER sessions_ended AFTER DELETE ON sessions
    FOR EACH ROW EXECUTE FUNCTION sessions_ended();

-- +goose StatementBegin
CREATE FUNCTION accounts_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.disabled_at IS NOT NULL OR NEW.deleted_at IS NOT NULL)
       AND OLD.disabled_at IS NULL AND OLD.deleted_at IS NULL THEN
        PERFORM record_change('disabled', NEW.id);
    ELSE
        PERFORM record_change('rights', NEW.id);
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER accounts_changed AFTER UPDATE ON accounts
    FOR EACH ROW WHEN (OLD.disabled_at IS DISTINCT FROM NEW.disabled_at OR OLD.deleted_at IS DISTINCT FROM NEW.deleted_at)
    EXECUTE FUNCTION accounts_changed();

-- One-time codes. The key is SHA-256 of the challenge that the asker holds and
-- the code is hashed together with it, so that this table alone does not give
-- the six digits away. Rows are kept for a day to count what a target was sent.
CREATE TABLE codes (
    challenge  bytea PRIMARY KEY CHECK (octet_length(challenge) = 32),
    channel    text        NOT NULL CHECK (channel IN ('phone', 'mail')),
    target     text        NOT NULL,
    purpose    text        NOT NULL CHECK (purpose IN ('signin', 'link', 'reset')),
    code       bytea       NOT NULL CHECK (octet_length(code) = 32),
    tries      smallint    NOT NULL DEFAULT 0,
    sent       boolean     NOT NULL,     -- false: nobody to send it to, so it never fits
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);
CREATE INDEX codes_target ON codes (channel, target, created_at);
CREATE INDEX codes_created ON codes (created_at);

-- Sign-ins with OpenID Connect that are under way, and the tickets they end in.
CREATE TABLE oidc_flows (
    state      bytea PRIMARY KEY CHECK (octet_length(state) = 32), -- SHA-256
    provider   text        NOT NULL,
    nonce      text        NOT NULL,
    verifier   text        NOT NULL, -- PKCE, RFC 7636
    redirect   text        NOT NULL,
    challenge  text        NOT NULL DEFAULT '', -- S256 of what the ticket's holder must show, or ''
    expires_at timestamptz NOT NULL
);
CREATE INDEX oidc_flows_expires ON oidc_flows (expires_at);

CREATE TABLE tickets (
    ticket     bytea PRIMARY KEY CHECK (octet_length(ticket) = 32), -- SHA-256
    provider   text        NOT NULL,
    subject    text        NOT NULL,
    name       text        NOT NULL DEFAULT '',
    challenge  text        NOT NULL DEFAULT '',
    expires_at timestamptz NOT NULL
);
CREATE INDEX tickets_expires ON tickets (expires_at);

-- The API's own keys (Ed25519). Exactly one signs; the others only verify.
CREATE TABLE signing_keys (
    kid        text PRIMARY KEY,
    public     bytea       NOT NULL CHECK (octet_length(public) = 32),
    private    bytea,                  -- seed; sealed if a key secret is configured; gone once retired
    sealed     boolean     NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz,
    expires_at timestamptz,            -- of a retired key: when the last token it signed has expired
    CHECK ((retired_at IS NULL) = (private IS NOT NULL)),
    CHECK ((retired_at IS NULL) = (expires_at IS NULL))
);
CREATE UNIQUE INDEX signing_keys_current ON signing_keys ((true)) WHERE retired_at IS NULL;

-- What devices and services are besides accounts.
CREATE TABLE devices (
    account    text PRIMARY KEY REFERENCES accounts (id),
    grp        text,                                   -- the group whose owner made it; NULL: an admin did
    groups     text[]      NOT NULL DEFAULT '{}',      -- groups claim
    acl_pub    text[]      NOT NULL DEFAULT '{}',
    acl_sub    text[]      NOT NULL DEFAULT '{}',
    created_by text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX devices_grp ON devices (grp, account) WHERE grp IS NOT NULL;

-- How a device proves itself: a token that was shown once, or a key of its own.
CREATE TABLE device_credentials (
    id         text PRIMARY KEY,       -- jti and sid of the token, kid of the key
    account    text        NOT NULL REFERENCES devices (account),
    kid        text,                   -- token: the signing key that signed it
    jwk        jsonb,                  -- key: the public key (RFC 7517)
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,            -- token: exp; key: NULL
    revoked_at timestamptz,
    CHECK ((jwk IS NULL) = (expires_at IS NOT NULL))
);
CREATE INDEX device_credentials_account ON device_credentials (account);
CREATE INDEX device_credentials_revoked ON device_credentials (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX device_credentials_kid ON device_credentials (kid) WHERE kid IS NOT NULL;

-- +goose StatementBegin
CREATE FUNCTION device_credentials_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A key has no expiry: tokens signed with it are refused by its absence
    -- from the key set, and what is connected with it ends by the change alone.
    -- Their session is the key's id.
    IF NEW.jwk IS NULL THEN
        INSERT INTO revocations (session, account, expires_at)
        VALUES (NEW.id, NEW.account, NEW.expires_at + interval '5 minutes')
        ON CONFLICT (session) DO NOTHING;
    ELSE
        PERFORM record_change('disabled', NEW.account, '', NEW.id);
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER device_credentials_changed AFTER UPDATE ON device_credentials
    FOR EACH ROW WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL)
    EXECUTE FUNCTION device_credentials_changed();

-- Answers to creating calls, replayed to a caller that repeats the call with
-- the same Idempotency-Key. key is a hash, and body is sealed with the key
-- itself, because an answer may hold a token that is shown once.
CREATE TABLE idempotency (
    subject    text        NOT NULL,
    key        bytea       NOT NULL CHECK (octet_length(key) = 32),
    request    bytea       NOT NULL CHECK (octet_length(request) = 32), -- SHA-256 of method, path and body
    status     smallint    NOT NULL DEFAULT 0,
    body       bytea       NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (subject, key)
);
CREATE INDEX idempotency_created ON idempotency (created_at);
