-- +goose Up

CREATE TABLE messages (
    seq          bigint      PRIMARY KEY CHECK (seq > 0 AND seq < 9007199254740992),
    topic        text        NOT NULL,
    conversation text        NOT NULL,
    sender       text        NOT NULL,
    sent_at      timestamptz NOT NULL,
    type         text        NOT NULL,
    mid          text,
    message      jsonb       NOT NULL CHECK (jsonb_typeof(message) = 'object')
);

COMMENT ON TABLE messages IS 'Every chat message that the broker has acknowledged, once. Written by mynah archiver; yours to read and join.';
COMMENT ON COLUMN messages.seq IS 'Position in the total order of all messages. Below 2^53, so that JavaScript reads it exactly.';
COMMENT ON COLUMN messages.topic IS 'Where it was published: user/<id> or group/<id>.';
COMMENT ON COLUMN messages.conversation IS 'group/<id>, or dm/<a>/<b> with the two ids in byte order.';
COMMENT ON COLUMN messages.sender IS 'Id of the sender, from its verified token.';
COMMENT ON COLUMN messages.sent_at IS 'When the broker accepted it, to the millisecond.';
COMMENT ON COLUMN messages.type IS 'text, image, read, x-…: see PROTOCOL.md.';
COMMENT ON COLUMN messages.mid IS 'The client''s own id of the message, NULL if it gave none.';
COMMENT ON COLUMN messages.message IS 'The whole message as delivered, less prev.';

-- Read backwards for a conversation's history. It is ascending on purpose: a
-- b-tree is read backwards as fast as forwards, and new messages come at each
-- conversation's right end, where PostgreSQL splits pages without leaving them
-- half empty.
CREATE INDEX messages_conversation_seq ON messages (conversation, seq);

CREATE TABLE dead_letters (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    seq             bigint,
    received_at     timestamptz NOT NULL DEFAULT now(),
    topic           text        NOT NULL,
    payload         bytea       NOT NULL,
    reason          text        NOT NULL,
    sqlstate        text,
    attempts        integer     NOT NULL DEFAULT 1 CHECK (attempts > 0),
    last_attempt_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE dead_letters IS 'Messages that could not be stored in table messages. mynah archiver --retry-dead-letters tries them again.';
COMMENT ON COLUMN dead_letters.seq IS 'The message''s seq, NULL if the payload does not tell.';
COMMENT ON COLUMN dead_letters.topic IS 'The topic on which the archiver received it.';
COMMENT ON COLUMN dead_letters.payload IS 'The payload, byte for byte.';
COMMENT ON COLUMN dead_letters.reason IS 'Why it could not be stored, for people.';
COMMENT ON COLUMN dead_letters.sqlstate IS 'PostgreSQL''s error code, NULL if it was refused before it came to PostgreSQL.';
COMMENT ON COLUMN dead_letters.attempts IS 'How many times storing it has failed.';

-- The same message is delivered again after a crash between commit and
-- acknowledgement: it must not become a second dead letter.
CREATE UNIQUE INDEX dead_letters_once ON dead_letters (topic, sha256(payload));
