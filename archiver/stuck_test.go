package archiver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"mynah/internal/pgtest"
	"mynah/internal/waitfor"
	"mynah/schema"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
)

// mustStick is an archiver that was lost in the middle of a batch: PostgreSQL waits for
// the rest of its COPY and believes in it (it is on a Unix socket, where there is no
// keepalive). It returns the process of PostgreSQL.
func mustStick(tb testing.TB, address string, seq int) (pid uint32) {
	tb.Helper()
	conn, err := pgx.Connect(context.Background(), address)
	if err != nil {
		tb.Fatal(err)
	}
	reader, writer := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It was ended, or the test is over.
		_, _ = conn.PgConn().CopyFrom(context.Background(), reader, "COPY messages (seq, topic, conversation, sender, sent_at, type, mid, message) FROM STDIN")
	}()
	tb.Cleanup(func() {
		_ = writer.CloseWithError(errors.New("the test is over"))
		<-done
		_ = conn.Close(context.Background()) // it was ended
	})
	var rows strings.Builder
	// PostgreSQL stores rows when it has a thousand; those after the first are of no
	// interest.
	for i := range 2000 {
		fmt.Fprintf(&rows, "%d\tgroup/x\tgroup/x\tsomebody\t2026-01-01\ttext\t\\N\t{}\n", seq+10_000*min(i, 1)+i)
	}
	go func() { _, _ = io.WriteString(writer, rows.String()) }() // until the reader ends
	return conn.PgConn().PID()
}

// Guards against an archiver that waits for its own lost session, for ever: PostgreSQL
// had not noticed that the client of a COPY was gone, its rows kept the same ones from
// being stored again, and a change of the table queued behind it, behind which the next
// archiver queued.
func TestLostSessionIsEnded(t *testing.T) {
	t.Parallel()
	for _, change := range []bool{false, true} {
		t.Run(fmt.Sprintf("with a change of the table: %v", change), func(t *testing.T) {
			t.Parallel()
			address := pgtest.New(t)
			pool := mustPool(t, address)
			lost := mustStick(t, address+"&application_name=mynah%20archiver", 1)
			// A session of somebody else's that looks like it is none of ours.
			other := mustStick(t, address+"&application_name=somebody-else", 1_000_000)
			there := func(pid uint32) bool {
				return mustQuery[bool](t, pool, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, int32(pid))[0]
			}
			waitfor.MustSucceed(t, "both hold their rows and wait for their clients", func() error {
				if n := mustQuery[int](t, pool, `SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND wait_event = 'ClientRead' AND pid = ANY ($1)`, []int32{int32(lost), int32(other)}); n[0] != 2 {
					return fmt.Errorf("%d do", n[0])
				}
				return nil
			})
			if change {
				altered := make(chan error, 1)
				go func() {
					// As another role's session would: it waits for both COPYs.
					_, err := pool.Exec(context.Background(), `ALTER TABLE messages ADD COLUMN extra int`)
					altered <- err
				}()
				t.Cleanup(func() {
					if err := <-altered; err != nil {
						t.Errorf("change of the table: %v", err)
					}
				})
				t.Cleanup(func() { // before that: the other COPY is in its way still
					mustExec(t, mustPool(t, address), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'somebody-else' AND datname = current_database()`)
				})
				waitfor.MustSucceed(t, "the change of the table waits", func() error {
					if n := mustQuery[int](t, pool, `SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`); n[0] == 0 {
						return errors.New("it does not")
					}
					return nil
				})
			}
			broker := newFakeBroker(t)
			all := chatter(1, 10)
			began := time.Now()
			mustStart(t, broker, address)
			broker.publish(all...)
			waitfor.MustSucceed(t, "the lost session is ended", func() error {
				if there(lost) {
					return errors.New("it is there")
				}
				return nil
			})
			t.Logf("ended after %v", time.Since(began))
			if !there(other) {
				t.Error("somebody else's session was ended")
			}
			if !change { // else everybody waits for somebody else's COPY
				archived(t, broker, pool, all)
			}
		})
	}
}

// Guards against an archiver that says PostgreSQL is there while it takes no writes, and
// that stays with a server whose place another has taken.
func TestReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	broker := newFakeBroker(t)
	a := mustStart(t, broker, server.URL())
	database := func(want bool) {
		t.Helper()
		waitfor.MustSucceed(t, fmt.Sprintf("the archiver says %v of PostgreSQL", want), func() error {
			if is := a.Lag().Database; is != want {
				return fmt.Errorf("it says %v", is)
			}
			return nil
		})
	}
	database(true)
	readOnly := func(mode string) {
		t.Helper()
		pool := mustPool(t, server.URL())
		mustExec(t, pool, `ALTER SYSTEM SET default_transaction_read_only = `+mode)
		mustExec(t, pool, `SELECT pg_reload_conf()`)
	}
	readOnly("on")
	database(false) // although there is nothing to store
	all := chatter(1, 10)
	broker.publish(all...)
	readOnly("off")
	database(true)
	archived(t, broker, mustPool(t, server.URL()), all)
}

// The limits that the address sets stay.
func TestLimitsOfTheAddressStay(t *testing.T) {
	t.Parallel()
	address := pgtest.New(t)
	pool := mustPool(t, address)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE limits (name text, value text);
		CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			INSERT INTO limits SELECT name, current_setting(name) FROM pg_settings WHERE name IN ('lock_timeout', 'statement_timeout', 'idle_in_transaction_session_timeout');
			RETURN NULL; END $$;
		CREATE TRIGGER note AFTER INSERT ON messages FOR EACH STATEMENT EXECUTE FUNCTION note()`); err != nil {
		t.Fatal(err)
	}
	for i, test := range []struct{ extra, want string }{{"", "idle_in_transaction_session_timeout 10s, lock_timeout 5s, statement_timeout 1min"}, {"&lock_timeout=7s&statement_timeout=0&idle_in_transaction_session_timeout=8s", "idle_in_transaction_session_timeout 8s, lock_timeout 7s, statement_timeout 0"}} {
		mustExec(t, pool, `TRUNCATE limits`)
		broker := newFakeBroker(t)
		a := mustStart(t, broker, address+test.extra)
		broker.publish(chatter(uint64(i*100+1), 1)...)
		waitfor.MustSucceed(t, "the message is stored", func() error {
			if n := mustQuery[int64](t, pool, schema.SelectLastSeq); n[0] != int64(i*100+1) {
				return fmt.Errorf("the last is %d", n[0])
			}
			return nil
		})
		if err := a.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		got := strings.Join(mustQuery[string](t, pool, `SELECT DISTINCT name || ' ' || value FROM limits ORDER BY 1`), ", ")
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("with %q (-want +got):\n%s", test.extra, diff)
		}
	}
}
