package directory

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"mynah/schema"
)

// trustsKey reports whether tokens that the API's own key kid has signed are believed: not
// if it is distrusted, since it may have been stolen. The verifier refuses new tokens of
// it; this is for what is connected already. "" is the key of somebody else, of which
// nothing is known here. What cannot be known now is as the verifier had it.
func (d *Directory) trustsKey(ctx context.Context, kid string) bool {
	if kid == "" {
		return true
	}
	if known := d.keys.Load(); known == nil || (*known)[kid] || d.away.Load() {
		return true
	}
	// One that was made since the last reading, most likely.
	if err := d.readKeys(ctx); err != nil {
		return true
	}
	return (*d.keys.Load())[kid]
}

// refreshKeys reads the keys because they may have changed.
func (d *Directory) refreshKeys(ctx context.Context) {
	if err := d.readKeys(ctx); err != nil {
		d.keys.Store(&map[string]bool{}) // each is asked about when it is met
		d.log.WarnContext(ctx, "cannot read which signing keys are trusted; it is tried again", "error", err)
	}
}

// readKeys reads which of the API's own keys verify.
func (d *Directory) readKeys(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	rows, err := d.pool.Query(ctx, schema.DirectoryKeys)
	if err != nil {
		return fmt.Errorf("read signing keys: %w", err)
	}
	kids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("read signing keys: %w", err)
	}
	known := make(map[string]bool, len(kids))
	for _, kid := range kids {
		known[kid] = true
	}
	d.keys.Store(&known)
	return nil
}
