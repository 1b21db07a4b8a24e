-- +goose Up

-- Where people have signed in: addresses and devices from which tries at their password
-- are counted apart, so that strangers who guess keep nobody out. A place is an HMAC of
-- the account and the address or the device's token, with a key of the server's
-- (--jwt-secret) and this database: it cannot be read back, nor compared between accounts.
CREATE TABLE known_places (
    account text        NOT NULL REFERENCES accounts (id),
    place   bytea       NOT NULL CHECK (octet_length(place) = 32),
    used_at timestamptz NOT NULL DEFAULT now(), -- to the day
    PRIMARY KEY (account, place)
);
CREATE INDEX known_places_used ON known_places (account, used_at);
CREATE INDEX known_places_old ON known_places (used_at);
COMMENT ON TABLE known_places IS 'At most 50 of an account, for half a year after they were used';
