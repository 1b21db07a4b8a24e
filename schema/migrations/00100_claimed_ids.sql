-- +goose Up

-- Whoever registers an id is, from then on, whom tokens of other issuers call by it.
-- So an id that anybody has used has an account: the broker's directory makes it when
-- a token's holder connects, the API when one calls. This makes up for those who came
-- before it did. It reads the whole archive, once.
INSERT INTO accounts (id, kind)
SELECT id, CASE WHEN id IN ('archiver', 'system') THEN 'service' ELSE 'user' END
FROM (SELECT sender AS id FROM messages UNION SELECT account FROM members) used
WHERE octet_length(id) BETWEEN 1 AND 64 AND id !~ '[^A-Za-z0-9_.~-]'
ON CONFLICT (id) DO NOTHING;
