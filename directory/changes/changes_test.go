package changes_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/authhook"
	"mynah/directory/changes"
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
	// Else a test that fails would wait for its connection for ever.
	tb.Cleanup(func() { _ = tx.Rollback(context.Background()) })
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

// Whatever takes rights away tells the feed and wakes its readers, also when it is
// done by plain SQL behind the API's back.
func TestWhatIsTold(t *testing.T) {
	t.Parallel()
	db := connect(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`INSERT INTO accounts (id, kind) VALUES ('anna', 'user'), ('meter', 'device'), ('pump', 'device')`)
	exec(`INSERT INTO sessions (id, account, method, family, token, expires_at)
		SELECT 's' || n, 'anna', 'password', sha256(n::text::bytea), sha256(n::text::bytea), now() + interval '1 day' FROM generate_series(1, 2) n`)
	exec(`INSERT INTO devices (account, created_by) VALUES ('meter', 'boss'), ('pump', 'boss')`)
	exec(`INSERT INTO device_credentials (id, account, kid, expires_at) VALUES ('jti', 'meter', 'k', now() + interval '1 year')`)
	exec(`INSERT INTO device_credentials (id, account, jwk) VALUES ('device.1', 'pump', '{}')`)
	var r changes.Reader
	if _, _, err := r.Read(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	ear, err := db.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer ear.Release()
	if _, err := ear.Exec(t.Context(), "LISTEN "+changes.Channel); err != nil {
		t.Fatal(err)
	}
	for sql, want := range map[string][]authhook.Change{
		`DELETE FROM sessions WHERE id = 's1'`:                       {{Kind: authhook.ChangeDisabled, Subject: "anna", Session: "s1"}},
		`UPDATE accounts SET disabled_at = now() WHERE id = 'meter'`: {{Kind: authhook.ChangeDisabled, Subject: "meter"}},
		`UPDATE accounts SET deleted_at = now() WHERE id = 'anna'`:   {{Kind: authhook.ChangeDisabled, Subject: "anna"}},
		`UPDATE device_credentials SET revoked_at = now()`: {
			{Kind: authhook.ChangeDisabled, Subject: "meter", Session: "jti"}, {Kind: authhook.ChangeDisabled, Subject: "pump", Session: "device.1"},
		},
		`UPDATE accounts SET name = 'Pump' WHERE id = 'pump'`: nil,
	} {
		exec(sql)
		if want != nil {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			if _, err := ear.Conn().WaitForNotification(ctx); err != nil {
				t.Fatalf("%s: nobody is woken: %v", sql, err)
			}
			cancel()
		}
		got, all, err := r.Read(t.Context(), db)
		if err != nil || all || !slices.Equal(got, want) {
			t.Errorf("%s: told %v (all %v, %v), want %v", sql, got, all, err, want)
		}
	}
}
