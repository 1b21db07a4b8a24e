package changes_test

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/api/changes"
	"mynah/authhook"
	"mynah/internal/pgtest"
)

func connect(tb testing.TB) *pgxpool.Pool {
	tb.Helper()
	pool, err := pgxpool.New(tb.Context(), pgtest.New(tb))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(pool.Close)
	return pool
}

func begin(tb testing.TB, db *pgxpool.Pool, subject string) pgx.Tx {
	tb.Helper()
	tx, err := db.Begin(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := tx.Exec(tb.Context(), `SELECT record_change('joined', $1, 'g')`, subject); err != nil {
		tb.Fatal(err)
	}
	return tx
}

func commit(tb testing.TB, tx pgx.Tx) {
	tb.Helper()
	if err := tx.Commit(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

func read(tb testing.TB, r *changes.Reader, db *pgxpool.Pool) (subjects []string, all bool) {
	tb.Helper()
	list, all, err := r.Read(tb.Context(), db)
	if err != nil {
		tb.Fatal(err)
	}
	for _, c := range list {
		if c.Kind != authhook.ChangeJoined || c.Group != "g" {
			tb.Errorf("read %+v", c)
		}
		subjects = append(subjects, c.Subject)
	}
	return subjects, all
}

// Guards against the change that is missed because a transaction that began
// earlier commits later: its number is below those that were read already.
func TestLateCommitIsNotMissed(t *testing.T) {
	t.Parallel()
	db := connect(t)
	var r changes.Reader
	if _, all := read(t, &r, db); !all {
		t.Fatal("the first reading does not ask for everything")
	}
	slow := begin(t, db, "slow")
	commit(t, begin(t, db, "quick"))
	if got, all := read(t, &r, db); all || !slices.Equal(got, []string{"quick"}) {
		t.Fatalf("read %v (all %v): a change waits for an older transaction", got, all)
	}
	commit(t, begin(t, db, "quick2"))
	if got, _ := read(t, &r, db); !slices.Equal(got, []string{"quick2"}) {
		t.Fatalf("read %v, want each change once", got)
	}
	kept := r.Cursor()
	commit(t, slow)
	if got, _ := read(t, &r, db); !slices.Equal(got, []string{"slow"}) {
		t.Fatalf("read %v: the late one is missed", got)
	}
	if got, _ := read(t, &r, db); got != nil {
		t.Fatalf("read %v again", got)
	}
	// Going on from a cursor that was kept misses nothing either.
	if got, all := read(t, changes.Resume(kept), db); all || !slices.Contains(got, "slow") {
		t.Errorf("resumed: %v", got)
	}
}

// Guards against a reader that sleeps for longer than the feed is kept and goes
// on as if nothing had been.
func TestTrimmedFeedAsksForEverything(t *testing.T) {
	t.Parallel()
	db := connect(t)
	var r changes.Reader
	read(t, &r, db)
	commit(t, begin(t, db, "lost"))
	if _, err := db.Exec(t.Context(), `WITH gone AS (DELETE FROM changes RETURNING xid) UPDATE changes_trimmed SET xid = gone.xid FROM gone`); err != nil {
		t.Fatal(err)
	}
	if got, all := read(t, &r, db); !all || got != nil {
		t.Fatalf("read %v, all %v", got, all)
	}
	if got, all := read(t, &r, db); all || got != nil {
		t.Fatalf("then read %v, all %v", got, all)
	}
	// A cursor of another cluster, far ahead.
	if _, all := read(t, changes.Resume(1<<40), db); !all {
		t.Error("a cursor from the future is believed")
	}
}
