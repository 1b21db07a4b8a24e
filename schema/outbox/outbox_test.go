package outbox_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/internal/leak"
	"mynah/internal/pgtest"
	"mynah/schema"
	"mynah/schema/outbox"
	"mynah/schema/pgtx"
)

func TestMain(m *testing.M) { leak.Main(m) }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// A notice is there if the change that it tells of was committed, and only then; those for
// staff go to the owner and the admins alone.
func TestNoticesShareTheTransaction(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, pgtest.New(t))
	must(t, err)
	defer pool.Close()
	db := pgtx.New(pool)
	_, err = pool.Exec(ctx, `INSERT INTO groups (id) VALUES ('g');
		INSERT INTO members (grp, account, role) VALUES ('g', 'anna', 'owner'), ('g', 'bert', 'admin'), ('g', 'carl', 'member')`)
	must(t, err)
	body := map[string]string{"who": "dora"}
	undone := errors.New("undone")
	if err := db.Tx(ctx, func(ctx context.Context) error {
		must(t, outbox.Notify(ctx, db, "user/anna", "notice.undone", body))
		must(t, outbox.NotifyStaff(ctx, db, "g", "notice.undone", body))
		return undone
	}); !errors.Is(err, undone) {
		t.Fatal(err)
	}
	must(t, db.Tx(ctx, func(ctx context.Context) error {
		must(t, outbox.Notify(ctx, db, "group/g", "notice.first", body))
		return outbox.NotifyStaff(ctx, db, "g", "notice.second", body)
	}))
	rows, err := pgtx.List(ctx, db, "read outbox", func(row pgx.CollectableRow) (text string, err error) {
		var id int64
		var mid, topic, kind, body string
		err = row.Scan(&id, &mid, &topic, &kind, &body)
		return topic + " " + kind + " " + body, err
	}, schema.SelectOutbox, 10)
	must(t, err)
	want := []string{
		`group/g notice.first {"who": "dora"}`, `user/anna notice.second {"who": "dora"}`, `user/bert notice.second {"who": "dora"}`,
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Error(diff)
	}
}
