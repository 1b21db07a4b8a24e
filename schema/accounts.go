package schema

// Queries of accounts, signing in, devices and the API's own book-keeping. $n and
// what each column means are said with each.
const (
	// InsertIdempotency reserves key $2 (hashed) of subject $1 for the request
	// with hash $3. It affects no row if the key is taken, after waiting for
	// the transaction that takes it.
	InsertIdempotency = `
INSERT INTO idempotency (subject, key, request) VALUES ($1, $2, $3)
ON CONFLICT (subject, key) DO NOTHING`

	// SelectIdempotency gives the request's hash and the sealed answer kept
	// for subject $1 and key $2.
	SelectIdempotency = `SELECT request, body FROM idempotency WHERE subject = $1 AND key = $2`

	// UpdateIdempotency keeps the sealed answer $3 for subject $1 and key $2.
	UpdateIdempotency = `UPDATE idempotency SET body = $3 WHERE subject = $1 AND key = $2`

	// SelectAdmission tells whether the holder of a token may come in: subject
	// $1, its sid and jti $2. It gives whether the account is refused
	// (disabled or deleted), whether the token is revoked, when the session
	// began (or NULL), and whether seen_at is due. No row: no such account.
	SelectAdmission = `
SELECT a.disabled_at IS NOT NULL OR a.deleted_at IS NOT NULL,
       EXISTS (SELECT FROM revocations r WHERE r.session = ANY ($2)),
       (SELECT s.created_at FROM sessions s WHERE s.id = $3 AND s.account = a.id),
       a.seen_at IS NULL OR a.seen_at < now() - interval '1 minute'
FROM accounts a WHERE a.id = $1`

	// InsertKnownAccount makes account $1 of kind $2 for a token that another
	// issuer signed. It does nothing if the account is there.
	InsertKnownAccount = `INSERT INTO accounts (id, kind) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING`

	// UpdateSeen notes that account $1 was seen now.
	UpdateSeen = `
UPDATE accounts SET seen_at = now()
WHERE id = $1 AND (seen_at IS NULL OR seen_at < now() - interval '1 minute')`

	// SelectSigningKeys gives kid, public, private (or NULL), sealed of every
	// key that is not yet forgotten.
	SelectSigningKeys = `
SELECT kid, public, private, sealed FROM signing_keys
WHERE expires_at IS NULL OR expires_at > now()
ORDER BY created_at DESC`

	// InsertSigningKey makes kid $1 with public $2 and private $3 (sealed: $4)
	// the signing key, unless there is one.
	InsertSigningKey = `
INSERT INTO signing_keys (kid, public, private, sealed) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING`

	// RetireSigningKey retires the signing key. It verifies on for $1 (an
	// interval), and as long as a device's token that it signed is valid.
	RetireSigningKey = `
UPDATE signing_keys k
SET private = NULL, retired_at = now(), expires_at = greatest(now() + $1::interval,
    (SELECT max(c.expires_at) FROM device_credentials c WHERE c.kid = k.kid AND c.revoked_at IS NULL))
WHERE retired_at IS NULL`

	// SelectDeviceKey gives jwk, account, kind, groups, acl_pub, acl_sub of the
	// device's key $1, if it is neither revoked nor its device disabled.
	SelectDeviceKey = `
SELECT c.jwk, a.id, a.kind, d.groups, d.acl_pub, d.acl_sub
FROM device_credentials c JOIN devices d ON d.account = c.account JOIN accounts a ON a.id = c.account
WHERE c.id = $1 AND c.jwk IS NOT NULL AND c.revoked_at IS NULL
  AND a.disabled_at IS NULL AND a.deleted_at IS NULL`

	// SelectSigningKey gives the signing key's kid if it is $1, and keeps it
	// from being retired until the transaction ends.
	SelectSigningKey = `SELECT kid FROM signing_keys WHERE kid = $1 AND retired_at IS NULL FOR SHARE`

	// LockID keeps others from making an account whose id is $1 in whatever case
	// until the transaction ends. (accounts_lower cannot be unique: the tokens of
	// other issuers may speak of two such ids, and are truth.)
	LockID = `SELECT pg_advisory_xact_lock(hashtextextended('id ' || lower($1), 0))`

	// InsertAccount makes account $1 of kind $2 with name $3. It affects no
	// row if the id, in whatever case, is or was in use, or if it is a member of
	// a group already: somebody put it there for whom tokens will speak of. LockID
	// comes before it.
	InsertAccount = `
INSERT INTO accounts (id, kind, name)
SELECT $1::text, $2, $3 WHERE NOT EXISTS (SELECT FROM accounts WHERE lower(id) = lower($1::text))
  AND NOT EXISTS (SELECT FROM members WHERE account = $1::text)
ON CONFLICT (id) DO NOTHING`

	// LockAccount keeps account $1 from being deleted, and others that lock it from
	// going on, until the transaction ends. No row: it is deleted, or never was. It is
	// a statement of its own, and the first: what comes after it sees what was
	// committed while it waited.
	LockAccount = `SELECT id FROM accounts WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE`

	// SelectAccount gives id, kind, name, avatar, ext, find_by_id,
	// find_by_phone, find_by_mail, created_at of account $1.
	SelectAccount = `
SELECT id, kind, name, avatar, ext, find_by_id, find_by_phone, find_by_mail, created_at
FROM accounts WHERE id = $1 AND deleted_at IS NULL`

	// UpdateProfile changes account $1: name $2, avatar $3, ext $4, find_by_id
	// $5, find_by_phone $6, find_by_mail $7; what is NULL stays.
	UpdateProfile = `
UPDATE accounts SET name = coalesce($2, name), avatar = coalesce($3, avatar), ext = coalesce($4::jsonb, ext),
    find_by_id = coalesce($5, find_by_id), find_by_phone = coalesce($6, find_by_phone),
    find_by_mail = coalesce($7, find_by_mail), updated_at = now()
WHERE id = $1 AND deleted_at IS NULL`

	// UpdateName changes the name of account $1 to $2.
	UpdateName = `UPDATE accounts SET name = $2, updated_at = now() WHERE id = $1 AND deleted_at IS NULL`

	// SelectProfiles gives id, kind, name, avatar, ext, find_by_id of the
	// accounts $1 (an array) that are not deleted.
	SelectProfiles = `
SELECT id, kind, name, avatar, ext, find_by_id FROM accounts
WHERE id = ANY ($1::text[]) AND deleted_at IS NULL`

	// FindByID gives id, kind, name, avatar, ext of account $1 if strangers
	// may find it by its id; FindByPhone and FindByMail by identity $1.
	FindByID = `
SELECT id, kind, name, avatar, ext FROM accounts
WHERE id = $1 AND find_by_id AND kind = 'user' AND deleted_at IS NULL AND disabled_at IS NULL`
	FindByPhone = `
SELECT a.id, a.kind, a.name, a.avatar, a.ext FROM identities i JOIN accounts a ON a.id = i.account
WHERE i.provider = 'phone' AND i.subject = $1 AND a.find_by_phone AND a.deleted_at IS NULL AND a.disabled_at IS NULL`
	FindByMail = `
SELECT a.id, a.kind, a.name, a.avatar, a.ext FROM identities i JOIN accounts a ON a.id = i.account
WHERE i.provider = 'mail' AND i.subject = $1 AND a.find_by_mail AND a.deleted_at IS NULL AND a.disabled_at IS NULL`

	// DeleteAccount takes the name of account $1 away and marks it deleted.
	DeleteAccount = `
UPDATE accounts SET deleted_at = now(), updated_at = now(), name = '', avatar = '', ext = '{}', seen_at = NULL,
    find_by_id = false, find_by_phone = false, find_by_mail = false, write_policy = NULL, presence_policy = NULL
WHERE id = $1 AND deleted_at IS NULL`

	// UpdateDisabled disables account $1 ($2 true) or enables it. The owner of a
	// device's group ($3 true) does not enable what somebody else has disabled: no
	// row is affected then.
	UpdateDisabled = `
UPDATE accounts SET disabled_at = CASE WHEN $2 THEN coalesce(disabled_at, now()) END, updated_at = now(),
    disabled_by_owner = $2 AND $3 AND (disabled_at IS NULL OR disabled_by_owner)
WHERE id = $1 AND deleted_at IS NULL AND ($2 OR NOT $3 OR disabled_at IS NULL OR disabled_by_owner)`

	// SelectIdentity gives account and whether it is disabled for the identity
	// of provider $1 with subject $2 or alias $3 (or NULL).
	SelectIdentity = `
SELECT a.id, a.disabled_at IS NOT NULL FROM (
    SELECT account, 0 AS rank FROM identities WHERE provider = $1 AND subject = $2
    UNION ALL
    SELECT account, 1 FROM identities WHERE provider = $1 AND alias = $3::text) AS i
JOIN accounts a ON a.id = i.account ORDER BY i.rank LIMIT 1`

	// InsertIdentity links provider $1, subject $2, alias $3 (or NULL) to
	// account $4, with secret $5 (or NULL).
	InsertIdentity = `INSERT INTO identities (provider, subject, alias, account, secret) VALUES ($1, $2, $3, $4, $5)`

	// UpdateIdentityAlias notes alias $3 with the identity of provider $1 and
	// account $2, if it has none and nobody else has it.
	UpdateIdentityAlias = `
UPDATE identities SET alias = $3 WHERE provider = $1 AND account = $2 AND alias IS NULL
  AND NOT EXISTS (SELECT FROM identities WHERE provider = $1 AND alias = $3)`

	// SelectIdentities gives provider, subject, created_at of account $1.
	SelectIdentities = `SELECT provider, subject, created_at FROM identities WHERE account = $1 ORDER BY provider`

	// CountIdentities gives how many identities account $1 has, and how many
	// of them are of provider $2. LockAccount comes before it.
	CountIdentities = `SELECT count(*), count(*) FILTER (WHERE provider = $2) FROM identities WHERE account = $1`

	// DeleteIdentity removes the identity of account $1 at provider $2,
	// DeleteIdentities all of account $1.
	DeleteIdentity   = `DELETE FROM identities WHERE account = $1 AND provider = $2`
	DeleteIdentities = `DELETE FROM identities WHERE account = $1`

	// SelectPassword gives the hash of account $1's password.
	SelectPassword = `SELECT secret FROM identities WHERE provider = 'password' AND subject = $1`

	// UpsertHash gives account $1 the password with hash $2.
	UpsertHash = `
INSERT INTO identities (provider, subject, account, secret) VALUES ('password', $1, $1, $2)
ON CONFLICT (provider, subject) DO UPDATE SET secret = excluded.secret`

	// InsertCode stores a code: challenge's hash $1, channel $2, target $3,
	// purpose $4, code's hash $5, sent $6, valid for $7. It affects no row if
	// the target was sent $8 in the last hour. Two at once may both be stored
	// at the limit: a code more, no harm.
	InsertCode = `
INSERT INTO codes (challenge, channel, target, purpose, code, sent, expires_at)
SELECT $1, $2::text, $3::text, $4, $5, $6, now() + $7::interval
WHERE (SELECT count(*) FROM codes WHERE channel = $2::text AND target = $3::text AND created_at > now() - interval '1 hour') < $8`

	// TryCode counts a try at the code with challenge $1 (hashed) and purpose
	// $2, of at most $3 tries, and gives code's hash, channel, target, sent.
	TryCode = `
UPDATE codes SET tries = tries + 1
WHERE challenge = $1 AND purpose = $2 AND tries < $3 AND used_at IS NULL AND expires_at > now()
RETURNING code, channel, target, sent`

	// UseCode uses up the code with challenge $1. It affects no row if it was
	// used before.
	UseCode = `UPDATE codes SET used_at = now() WHERE challenge = $1 AND used_at IS NULL`

	// InsertFlow begins a sign-in: state's hash $1, provider $2, nonce $3,
	// verifier $4, redirect $5, challenge $6, valid for $7.
	InsertFlow = `
INSERT INTO oidc_flows (state, provider, nonce, verifier, redirect, challenge, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, now() + $7::interval)`

	// TakeFlow ends the sign-in with state $1 at provider $2 and gives nonce,
	// verifier, redirect, challenge.
	TakeFlow = `
DELETE FROM oidc_flows WHERE state = $1 AND provider = $2 AND expires_at > now()
RETURNING nonce, verifier, redirect, challenge`

	// InsertTicket stores a ticket: hash $1, provider $2, subject $3, name $4,
	// challenge $5, valid for $6.
	InsertTicket = `
INSERT INTO tickets (ticket, provider, subject, name, challenge, expires_at)
VALUES ($1, $2, $3, $4, $5, now() + $6::interval)`

	// TakeTicket uses up ticket $1 and gives provider, subject, name, challenge.
	TakeTicket = `DELETE FROM tickets WHERE ticket = $1 AND expires_at > now() RETURNING provider, subject, name, challenge`

	// InsertSession opens session $1 of account $2 by method $3 on device $4
	// at address $5 with family's hash $6 and token's hash $7, for $8.
	InsertSession = `
INSERT INTO sessions (id, account, method, device, address, family, token, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, now() + $8::interval)`

	// DeleteOldestSessions ends those of account $1's sessions that are beyond
	// the $2 used last.
	DeleteOldestSessions = `
DELETE FROM sessions WHERE id IN (
    SELECT id FROM sessions WHERE account = $1 ORDER BY used_at DESC, id OFFSET $2)`

	// SelectSessionByFamily gives id, account, token, last_token, last_answer,
	// whether the last rotation is at most $2 ago, and whether the account is
	// refused, of the session with family's hash $1. It locks the session.
	SelectSessionByFamily = `
SELECT s.id, s.account, s.token, s.last_token, s.last_answer, s.rotated_at > now() - $2::interval,
       a.disabled_at IS NOT NULL OR a.deleted_at IS NOT NULL
FROM sessions s JOIN accounts a ON a.id = s.account
WHERE s.family = $1 AND s.expires_at > now() FOR UPDATE OF s`

	// RotateSession gives session $1 token's hash $2 after $3, whose sealed
	// answer is $4; used at address $5, valid for $6.
	RotateSession = `
UPDATE sessions SET token = $2, last_token = $3, last_answer = $4, address = $5,
    rotated_at = now(), used_at = now(), expires_at = now() + $6::interval
WHERE id = $1`

	// SelectSessions gives id, device, method, address, created_at, used_at,
	// expires_at of account $1's sessions, newest first: those before created
	// $2 and id $3, at most $4.
	SelectSessions = `
SELECT id, device, method, address, created_at, used_at, expires_at FROM sessions
WHERE account = $1 AND (created_at, id) < ($2, $3) AND expires_at > now()
ORDER BY created_at DESC, id DESC LIMIT $4`

	// DeleteSession ends session $2 of account $1, DeleteSessions all of
	// account $1 but $2, DeleteAllSessions all of account $1.
	DeleteSession     = `DELETE FROM sessions WHERE account = $1 AND id = $2`
	DeleteSessions    = `DELETE FROM sessions WHERE account = $1 AND id <> $2`
	DeleteAllSessions = `DELETE FROM sessions WHERE account = $1`

	// InsertDevice makes account $1 a device: group $2 (or NULL), groups $3,
	// acl_pub $4, acl_sub $5, created by $6.
	InsertDevice = `
INSERT INTO devices (account, grp, groups, acl_pub, acl_sub, created_by)
VALUES ($1, $2, coalesce($3::text[], '{}'), coalesce($4::text[], '{}'), coalesce($5::text[], '{}'), $6)`

	selectDevice = `
SELECT a.id, a.kind, a.name, d.grp, d.groups, d.acl_pub, d.acl_sub, d.created_by, d.created_at, a.seen_at, a.disabled_at
FROM devices d JOIN accounts a ON a.id = d.account `

	// SelectDevice gives id, kind, name, group (or NULL), groups, acl_pub,
	// acl_sub, created_by, created_at, seen_at, disabled_at of device $1.
	SelectDevice = selectDevice + `WHERE d.account = $1 AND a.deleted_at IS NULL`

	// SelectDevices gives the same of at most $2 devices after id $1,
	// SelectGroupDevices of those of group $3.
	SelectDevices      = selectDevice + `WHERE d.account > $1 AND a.deleted_at IS NULL ORDER BY d.account LIMIT $2`
	SelectGroupDevices = selectDevice + `WHERE d.grp = $3 AND d.account > $1 AND a.deleted_at IS NULL ORDER BY d.account LIMIT $2`

	// InsertDeviceAccess notes credential $1 of device $2: a token signed with
	// key $3 that expires at $5, or the public key $4.
	InsertDeviceAccess = `INSERT INTO device_credentials (id, account, kid, jwk, expires_at) VALUES ($1, $2, $3, $4::jsonb, $5)`

	// RevokeDeviceAccess revokes the credentials of device $1.
	RevokeDeviceAccess = `UPDATE device_credentials SET revoked_at = now() WHERE account = $1 AND revoked_at IS NULL`

	// SelectHorizon gives, of the feed of changes, the id of the oldest
	// transaction that is still running, and the id up to which the feed has
	// been trimmed, both as text.
	SelectHorizon = `SELECT pg_snapshot_xmin(pg_current_snapshot())::text, (SELECT xid::text FROM changes_trimmed)`

	// SelectChanges gives the same as SelectHorizon and, with it in one
	// snapshot, id, kind, subject, grp, session of the changes since
	// transaction $1 (text), at most $2. With no change it gives one row whose
	// id is NULL.
	SelectChanges = `
SELECT pg_snapshot_xmin(pg_current_snapshot())::text, t.xid::text, c.id, c.kind, c.subject, c.grp, c.session
FROM changes_trimmed t LEFT JOIN LATERAL (
    SELECT * FROM changes WHERE xid >= $1::text::xid8 ORDER BY xid, id LIMIT $2) c ON true
ORDER BY c.xid, c.id`

	// ExpireSigningKeys has every retired key verify no more.
	ExpireSigningKeys = `UPDATE signing_keys SET expires_at = now() WHERE retired_at IS NOT NULL AND expires_at > now()`
)

// Sweeps returns the statements that delete what has expired. Each deletes a
// bounded number of rows, so that none holds its locks for long.
func Sweeps() []string {
	return []string{
		`DELETE FROM idempotency WHERE ctid IN (SELECT ctid FROM idempotency WHERE created_at < now() - interval '24 hours' LIMIT 20000)`,
		`DELETE FROM codes WHERE ctid IN (SELECT ctid FROM codes WHERE created_at < now() - interval '24 hours' LIMIT 20000)`,
		`DELETE FROM known_places WHERE ctid IN (SELECT ctid FROM known_places WHERE used_at < now() - interval '180 days' LIMIT 20000)`,
		`DELETE FROM oidc_flows WHERE expires_at < now()`,
		`DELETE FROM tickets WHERE expires_at < now()`,
		`DELETE FROM sessions WHERE ctid IN (SELECT ctid FROM sessions WHERE expires_at < now() LIMIT 5000)`,
		`DELETE FROM device_credentials WHERE revoked_at < now() - interval '30 days'`,
		`DELETE FROM revocations WHERE expires_at < now()`,
		`DELETE FROM signing_keys WHERE expires_at < now() - interval '1 day'`,
		`WITH old AS (SELECT xid FROM changes WHERE at < now() - interval '24 hours' ORDER BY xid DESC LIMIT 1),
		 mark AS (UPDATE changes_trimmed SET xid = old.xid FROM old)
		 DELETE FROM changes USING old WHERE changes.xid <= old.xid`,
	}
}
