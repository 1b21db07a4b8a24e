package schema_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"mynah/internal/leak"
	"mynah/internal/pgtest"
	"mynah/schema"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

func TestMain(m *testing.M) { leak.Main(m) }

func connect(t *testing.T, address string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Guards against two processes that start at once and migrate the same database:
// without the lock one of them fails on a table that exists already.
func TestMigrateAtOnce(t *testing.T) {
	t.Parallel()
	address := pgtest.NewEmpty(t)
	if err := schema.Check(t.Context(), connect(t, address)); !errors.Is(err, schema.ErrOutdated) {
		t.Errorf("check of an empty database: %v, want ErrOutdated", err)
	}
	var all errgroup.Group
	for range 4 {
		all.Go(func() error { return schema.Migrate(t.Context(), address) })
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := schema.Migrate(t.Context(), address); err != nil {
		t.Errorf("migrate again: %v", err)
	}
	if err := schema.Check(t.Context(), connect(t, address)); err != nil {
		t.Errorf("check of a migrated database: %v", err)
	}
}

// Guards against an old binary that works on, or changes, a newer database.
func TestNewerDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	address := pgtest.New(t)
	conn := connect(t, address)
	if _, err := conn.Exec(t.Context(), `INSERT INTO mynah_migrations (version_id, is_applied) VALUES ($1, true)`, schema.Version()+1); err != nil {
		t.Fatal(err)
	}
	if err := schema.Check(t.Context(), conn); !errors.Is(err, schema.ErrNewer) {
		t.Errorf("check: %v, want ErrNewer", err)
	}
	if err := schema.Migrate(t.Context(), address); !errors.Is(err, schema.ErrNewer) {
		t.Errorf("migrate: %v, want ErrNewer", err)
	}
	// The refusal must not keep the lock.
	if _, err := conn.Exec(t.Context(), `DELETE FROM mynah_migrations WHERE version_id > $1`, schema.Version()); err != nil {
		t.Fatal(err)
	}
	if err := schema.Migrate(t.Context(), address); err != nil {
		t.Errorf("migrate after the refusal: %v", err)
	}
}

// Guards against reserved numbers that block each other: a migration with a
// number below one that is applied already must still be applied.
func TestLowerNumberIsApplied(t *testing.T) {
	t.Parallel()
	address := pgtest.New(t)
	conn := connect(t, address)
	for _, statement := range []string{`DELETE FROM mynah_migrations WHERE version_id = 1`, `DROP TABLE messages, dead_letters`} {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := schema.Migrate(t.Context(), address); err != nil {
		t.Fatal(err)
	}
	if err := schema.Check(t.Context(), conn); err != nil {
		t.Error(err)
	}
}

// Guards against an archive that stops for ever at the first umlaut: a database without
// an encoding, which a bare PostgreSQL under LANG=C makes, is refused before anything is
// done in it.
func TestOnlyUTF8(t *testing.T) {
	t.Parallel()
	address := pgtest.NewEmpty(t)
	admin := connect(t, address)
	name := fmt.Sprintf("ascii_%d", os.Getpid())
	if _, err := admin.Exec(t.Context(), `CREATE DATABASE `+name+` ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = admin.Exec(context.Background(), `DROP DATABASE `+name+` WITH (FORCE)`) })
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	if err := schema.Migrate(t.Context(), u.String()); !errors.Is(err, schema.ErrEncoding) {
		t.Errorf("migrate: %v, want ErrEncoding", err)
	}
	conn := connect(t, u.String())
	if err := schema.Check(t.Context(), conn); !errors.Is(err, schema.ErrEncoding) {
		t.Errorf("check: %v, want ErrEncoding", err)
	}
	var tables int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`).Scan(&tables); err != nil || tables != 0 {
		t.Errorf("%d tables were made (%v)", tables, err)
	}
}

// Guards against ids that were in use before accounts were made for them: somebody
// else could register them.
func TestIDsInUseGetAccounts(t *testing.T) {
	t.Parallel()
	address := pgtest.New(t)
	conn := connect(t, address)
	if _, err := conn.Exec(t.Context(), `
DELETE FROM mynah_migrations WHERE version_id = 100;
INSERT INTO accounts (id, kind) VALUES ('sensor', 'device');
INSERT INTO groups (id) VALUES ('g');
INSERT INTO members (grp, account) VALUES ('g', 'silent');
INSERT INTO messages (seq, topic, conversation, sender, sent_at, type, message)
SELECT n, 'group/g', 'group/g', sender, now(), 'text', '{}'
FROM unnest(ARRAY['vic', 'vic', 'sensor', 'system']) WITH ORDINALITY AS m (sender, n)`); err != nil {
		t.Fatal(err)
	}
	if err := schema.Migrate(t.Context(), address); err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(t.Context(), `SELECT id || ' ' || kind FROM accounts ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"sensor device", "silent user", "system service", "vic user"}; !slices.Equal(got, want) {
		t.Errorf("accounts: %q, want %q", got, want)
	}
}

func TestMigrateUnreachable(t *testing.T) {
	t.Parallel()
	err := schema.Migrate(t.Context(), "postgres://mynah:hush@127.0.0.1:1/mynah?connect_timeout=2")
	if err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("got %v, want an error without the password", err)
	}
}

// Guards against a history that reads the whole conversation, or sorts it.
func TestHistoryUsesTheIndex(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.New(t))
	_, err := conn.Exec(t.Context(), `
INSERT INTO messages
SELECT n, 'group/' || n % 50, 'group/' || n % 50, 'alice', now(), 'text', NULL, jsonb_build_object('seq', n)
FROM generate_series(1, 20000) AS n`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `ANALYSE messages`); err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(t.Context(), `EXPLAIN `+schema.SelectHistory, "group/7", int64(15000), 50)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	plan := strings.Join(lines, "\n")
	if !strings.Contains(plan, "Index Scan Backward using messages_from_0_conversation_seq") || strings.Contains(plan, "Sort") {
		t.Errorf("plan of the history:\n%s", plan)
	}
	var last int64 = 1 << 53
	total := 0
	for {
		rows, err := conn.Query(t.Context(), schema.SelectHistory, "group/7", last, 150)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		var seq int64
		var message []byte
		if _, err := pgx.ForEachRow(rows, []any{&seq, &message}, func() error {
			if seq >= last {
				return fmt.Errorf("seq %d comes after %d", seq, last)
			}
			last = seq
			n++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if total += n; n == 0 {
			break
		}
	}
	if total != 400 {
		t.Errorf("read %d messages, want 400", total)
	}
}

// Guards against a start that waits for another migration, perhaps of a process that is
// gone, without a word.
func TestMigrateTellsForWhomItWaits(t *testing.T) {
	t.Parallel()
	address := pgtest.NewEmpty(t)
	other := connect(t, address+"&application_name=somebody-else")
	if _, err := other.Exec(t.Context(), `SELECT pg_advisory_lock($1)`, int64(0x6d796e6168)); err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 10)
	ended := make(chan error, 1)
	go func() { ended <- schema.Migrate(t.Context(), address, func(holder string) { told <- holder }) }()
	select {
	case holder := <-told:
		if !strings.Contains(holder, "somebody-else") || !strings.Contains(holder, "connected since") {
			t.Errorf("it waits for %q, want who that is and since when", holder)
		}
	case err := <-ended:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("it waits without a word")
	}
	if err := other.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("after the other one has ended: %v", err)
	}
}

// Guards against a start that waits for ever for a table that somebody has locked.
func TestMigrateGivesUpOnLockedTable(t *testing.T) {
	t.Parallel()
	address := pgtest.NewEmpty(t)
	other := connect(t, address)
	if _, err := other.Exec(t.Context(), `BEGIN; LOCK pg_class IN EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	// The address wins over the two minutes that are usual.
	err := schema.Migrate(t.Context(), address+"&lock_timeout=500ms")
	if err == nil || !strings.Contains(err.Error(), "another session has had a table locked") {
		t.Errorf("got %v, want what is in the way", err)
	}
	if _, err := other.Exec(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	if err := schema.Migrate(t.Context(), address); err != nil {
		t.Errorf("after that: %v", err)
	}
}
