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

	// ExpireSigningKeys has every retired key verify no more.
	ExpireSigningKeys = `UPDATE signing_keys SET expires_at = now() WHERE retired_at IS NOT NULL AND expires_at > now()`
)

// Sweeps returns the statements that delete what has expired. Each deletes a
// bounded number of rows, so that none holds its locks for long.
func Sweeps() []string {
	return []string{
		`DELETE FROM idempotency WHERE ctid IN (SELECT ctid FROM idempotency WHERE created_at < now() - interval '24 hours' LIMIT 20000)`,
		`DELETE FROM codes WHERE ctid IN (SELECT ctid FROM codes WHERE created_at < now() - interval '24 hours' LIMIT 20000)`,
		`DELETE FROM oidc_flows WHERE expires_at < now()`,
		`DELETE FROM tickets WHERE expires_at < now()`,
		`DELETE FROM sessions WHERE ctid IN (SELECT ctid FROM sessions WHERE expires_at < now() LIMIT 5000)`,
		`DELETE FROM revocations WHERE expires_at < now()`,
		`DELETE FROM signing_keys WHERE expires_at < now() - interval '1 day'`,
		`WITH old AS (SELECT xid FROM changes WHERE at < now() - interval '24 hours' ORDER BY xid DESC LIMIT 1),
		 mark AS (UPDATE changes_trimmed SET xid = old.xid FROM old)
		 DELETE FROM changes USING old WHERE changes.xid <= old.xid`,
	}
}
