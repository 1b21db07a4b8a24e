package schema

// Queries of the places where people have signed in (people/places.go).
const (
	// SelectPlaceSalt gives what tells this database's places from another's.
	SelectPlaceSalt = `SELECT id::text FROM database_identity`

	// KnowsPlaces tells of account $1 whether it has signed in at the address with
	// place $2, or has a session that was last used at address $4, and whether on the
	// device with place $3.
	KnowsPlaces = `
SELECT EXISTS (SELECT FROM known_places WHERE account = $1 AND place = $2)
    OR EXISTS (SELECT FROM sessions WHERE account = $1 AND address = $4 AND expires_at > now()),
       EXISTS (SELECT FROM known_places WHERE account = $1 AND place = $3)`

	// RememberPlace notes that account $1 was at place $2, to the day. It affects no
	// row if that is noted.
	RememberPlace = `
INSERT INTO known_places AS k (account, place) VALUES ($1, $2)
ON CONFLICT (account, place) DO UPDATE SET used_at = now() WHERE k.used_at < now() - interval '1 day'`

	// ForgetOldestPlaces forgets those of account $1 beyond the $2 used last,
	// ForgetPlaces all.
	ForgetOldestPlaces = `
DELETE FROM known_places WHERE account = $1 AND place IN (
    SELECT place FROM known_places WHERE account = $1 ORDER BY used_at DESC, place OFFSET $2)`
	ForgetPlaces = `DELETE FROM known_places WHERE account = $1`
)
