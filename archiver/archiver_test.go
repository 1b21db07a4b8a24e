package archiver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mynah/archiver"
	"mynah/chat"
	"mynah/internal/leak"
	"mynah/internal/mqttwire"
	"mynah/internal/pgtest"
	"mynah/internal/waitfor"
	"mynah/schema"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

func TestMain(m *testing.M) { leak.Main(m) }

func mustPool(tb testing.TB, address string) *pgxpool.Pool {
	tb.Helper()
	pool, err := pgxpool.New(context.Background(), address)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(pool.Close)
	return pool
}

func mustExec(tb testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	tb.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}

func mustQuery[T any](tb testing.TB, pool *pgxpool.Pool, sql string, args ...any) []T {
	tb.Helper()
	all, err := query[T](pool, sql, args...)
	if err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
	return all
}

func query[T any](pool *pgxpool.Pool, sql string, args ...any) ([]T, error) {
	rows, err := pool.Query(context.Background(), sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[T])
}

// mustStart starts an archiver, which is stopped when the test ends.
func mustStart(tb testing.TB, broker *fakeBroker, address string, change ...func(*archiver.Config)) *archiver.Archiver {
	tb.Helper()
	cfg := archiver.Config{
		BrokerURL:   broker.url(),
		DatabaseURL: address,
		Logger:      slog.New(slog.NewTextHandler(testLog{tb}, nil)),
	}
	for _, c := range change {
		c(&cfg)
	}
	a, err := archiver.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	if err := a.Start(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_ = a.Stop(ctx) // a test that cares stops it itself
	})
	return a
}

type testLog struct{ tb testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.tb.Logf("%s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// archived waits until the archive has exactly the seqs and the broker was told.
func archived(tb testing.TB, broker *fakeBroker, pool *pgxpool.Pool, want []delivery) {
	tb.Helper()
	waitfor.MustSucceed(tb, fmt.Sprintf("%d messages are acknowledged", len(want)), func() error {
		broker.mu.Lock()
		defer broker.mu.Unlock()
		if s := broker.sessions[archiver.DefaultClientID]; s == nil || s.acked != len(broker.log) {
			return errors.New("not yet")
		}
		return nil
	})
	var seqs []int64
	for _, d := range want {
		seqs = append(seqs, int64(d.seq))
	}
	pool.Reset() // its connections may be to a server that was killed
	if diff := cmp.Diff(seqs, mustQuery[int64](tb, pool, `SELECT seq FROM messages ORDER BY seq`)); diff != "" {
		tb.Errorf("the archive is not what was published (-want +got):\n%s", diff)
	}
}

// onlyCommitted makes the broker check at every acknowledgement that PostgreSQL
// has committed the message, on a connection of its own.
func onlyCommitted(tb testing.TB, broker *fakeBroker, pool *pgxpool.Pool) {
	tb.Helper()
	var mu sync.Mutex // two sessions may acknowledge at once
	var seen uint64
	broker.onAck = func(seq uint64) {
		mu.Lock()
		defer mu.Unlock()
		if seq <= seen {
			return
		}
		last, err := query[int64](pool, `SELECT coalesce(max(seq), 0) FROM messages`)
		if err != nil {
			return // it is being killed; what it committed before is checked at the end
		}
		seen = uint64(last[0])
		if seq > seen {
			tb.Errorf("seq %d was acknowledged and is not committed", seq)
		}
	}
}

// Guards the archive's contract: the columns of PROTOCOL.md, the message less
// prev, everything acknowledged after its commit and in order, and nothing but
// what is published to people and groups.
func TestArchive(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	address := pgtest.New(t)
	pool := mustPool(t, address)
	onlyCommitted(t, broker, pool)
	mustStart(t, broker, address, func(c *archiver.Config) {
		c.Token = func(context.Context) (string, error) { return "the token", nil }
	})

	broker.publish(
		delivery{11, "user/bob", []byte(`{"seq":11,"prev":3,"from":"carol","to":"user/bob","ts":1764000000123,"type":"text","body":"h\u00e9llo 你好","mid":"m1","ext":{"prev":1}}`)},
		delivery{12, "group/42", []byte(`{"type":"x-a","body":{"n":1.50},"seq":12,"prev":0,"from":"alice","to":"group/42","ts":1764000000124}`)},
		delivery{0, "user/bob/signal", []byte(`{"typing":true}`)},
		delivery{13, "user/alice", []byte(`{"seq":13,"prev":0,"from":"alice","to":"user/alice","ts":1764000000125,"type":"text","body":""}`)},
	)
	waitfor.MustSucceed(t, "all is acknowledged", func() error {
		if s := broker.session("archiver"); len(s.acks) != 4 {
			return fmt.Errorf("%d are", len(s.acks))
		}
		return nil
	})
	got := mustQuery[string](t, pool, `
SELECT concat_ws(' | ', seq, topic, conversation, sender, sent_at AT TIME ZONE 'UTC', type, coalesce(mid, 'NULL'), message) FROM messages ORDER BY seq`)
	want := []string{
		`11 | user/bob | dm/bob/carol | carol | 2025-11-24 16:00:00.123 | text | m1 | {"to": "user/bob", "ts": 1764000000123, "ext": {"prev": 1}, "mid": "m1", "seq": 11, "body": "héllo 你好", "from": "carol", "type": "text"}`,
		`12 | group/42 | group/42 | alice | 2025-11-24 16:00:00.124 | x-a | NULL | {"to": "group/42", "ts": 1764000000124, "seq": 12, "body": {"n": 1.50}, "from": "alice", "type": "x-a"}`,
		`13 | user/alice | dm/alice/alice | alice | 2025-11-24 16:00:00.125 | text | NULL | {"to": "user/alice", "ts": 1764000000125, "seq": 13, "body": "", "from": "alice", "type": "text"}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("table messages (-want +got):\n%s", diff)
	}
	if n := mustQuery[int64](t, pool, `SELECT count(*) FROM dead_letters`)[0]; n != 0 {
		t.Errorf("%d dead letters", n)
	}
	connect := broker.session("archiver").connects[0]
	if connect.Clean || connect.Password != "the token" || connect.Username == "" || connect.Version != mqttwire.V311 {
		t.Errorf("CONNECT was %v", connect)
	}
}

// Guards against an archiver that acknowledges, dies, grows or stops pinging while
// PostgreSQL is away, or that does not resume by itself.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	server := pgtest.NewServer(t)
	pool := mustPool(t, server.URL())
	all := chatter(1000, 3000)
	a := mustStart(t, broker, server.URL(), func(c *archiver.Config) { c.KeepAlive = time.Second })
	broker.publish(all[:500]...)
	archived(t, broker, pool, all[:500])

	server.Stop(syscall.SIGINT)
	broker.publish(all[500:]...)
	broker.tell(all[len(all)-1].seq)
	pings := broker.session("archiver").pings
	waitfor.MustSucceed(t, "pings go on and the window is full", func() error {
		if s := broker.session("archiver"); s.pings < pings+2 || len(s.inflight) < broker.window {
			return fmt.Errorf("%d pings, %d in flight", s.pings-pings, len(s.inflight))
		}
		return nil
	})
	if s := broker.session("archiver"); s.acked != 500 || len(s.connects) != 1 {
		t.Errorf("%d were acknowledged over %d connections, want 500 over 1", s.acked, len(s.connects))
	}
	lag := a.Lag()
	if lag.Messages != 2500 || lag.Seconds < 1 || lag.Database || !lag.Connected || lag.Committed != 1499 {
		t.Errorf("lag while PostgreSQL is away: %+v", lag)
	}

	server.Start()
	archived(t, broker, pool, all)
	waitfor.MustSucceed(t, "the lag is gone", func() error {
		if lag := a.Lag(); lag.Messages != 0 || lag.Seconds != 0 || !lag.Database {
			return fmt.Errorf("%+v", lag)
		}
		return nil
	})
}

// Guards against a loss or a second copy when PostgreSQL is killed in the middle of
// batches: the outcome of a commit is then unknown.
func TestDatabaseKilled(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	server := pgtest.NewServer(t)
	pool := mustPool(t, server.URL())
	onlyCommitted(t, broker, pool)
	all := chatter(1, 20000)
	mustStart(t, broker, server.URL(), func(c *archiver.Config) { c.BatchSize = 300 })
	broker.publish(all...)
	for _, at := range []int{2000, 7000, 12000} {
		waitfor.MustSucceed(t, "it is on its way", func() error {
			if s := broker.session("archiver"); s.acked < at {
				return fmt.Errorf("%d acknowledged", s.acked)
			}
			return nil
		})
		server.Kill()
		server.Start()
	}
	archived(t, broker, pool, all)
}

// Guards against acknowledgements that cross over to another connection, where the
// same packet id is another message, and against second copies of what is
// delivered again.
func TestConnectionCut(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	address := pgtest.New(t)
	pool := mustPool(t, address)
	onlyCommitted(t, broker, pool)
	all := chatter(1, 8000)
	var tokens atomic.Int32
	mustStart(t, broker, address, func(c *archiver.Config) {
		c.BatchSize = 200
		c.Token = func(context.Context) (string, error) { return fmt.Sprint("token ", tokens.Add(1)), nil }
	})
	// Cut by who takes the acknowledgements, or it could all be over before we look.
	committed := broker.onAck
	broker.onAck = func(seq uint64) {
		committed(seq)
		if seq == 500 || seq == 3000 || seq == 6000 {
			broker.cut("archiver")
		}
	}
	broker.publish(all...)
	archived(t, broker, pool, all)
	connects := broker.session("archiver").connects
	if len(connects) != 4 {
		t.Errorf("connected %d times, want 4", len(connects))
	}
	if got := connects[len(connects)-1].Password; got != fmt.Sprint("token ", len(connects)) {
		t.Errorf("the last connection used %q: a token may have expired by then", got)
	}
}

// Guards against one message that holds up the archive, or takes others with it.
func TestPoison(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	address := pgtest.New(t)
	pool := mustPool(t, address)
	// A rule of the user's own, as a reason to refuse what is well formed.
	mustExec(t, pool, `
CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.message->>'body' = 'forbidden' THEN RAISE EXCEPTION 'not in my archive'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER forbid BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION forbid()`)
	all := chatter(1, 1000)
	all[0] = say(1, "alice", "group/a", "forbidden")
	all[400] = say(401, "alice", "group/a", "forbidden")
	all[401] = delivery{402, "group/a", []byte("not JSON \x00\xff")}
	all[700] = delivery{701, "group/a", []byte(`{"seq":701,"prev":0,"from":"alice","to":"group/a","ts":5,"type":"text","body":"nul \u0000"}`)}
	all[800] = delivery{801, "group/a", []byte(`{"seq":801,"prev":0,"from":"no id!","to":"group/a","ts":5,"type":"text","body":""}`)}
	gap := chat.GapNotice("group/a", 5, 9, 1764000000000)
	all[850] = delivery{0, "group/a", gap.AppendEnvelope(nil, 0)}
	// Longer than an index entry may be; no broker of ours lets it through.
	long := strings.Repeat("x", 20000)
	all[999] = delivery{1000, "group/a", []byte(`{"seq":1000,"prev":0,"from":"alice","to":"group/` + long + `","ts":5,"type":"text","body":""}`)}
	var good []delivery
	for i, d := range all {
		if !slices.Contains([]int{0, 400, 401, 700, 800, 850, 999}, i) {
			good = append(good, d)
		}
	}
	mustStart(t, broker, address)
	broker.publish(all...)
	archived(t, broker, pool, good)

	letters := func() []string {
		return mustQuery[string](t, pool, `
SELECT concat_ws(' ', coalesce(seq, 0), topic, coalesce(sqlstate, '-'), attempts, length(payload), reason) FROM dead_letters ORDER BY seq NULLS FIRST, id`)
	}
	got := letters()
	want := []string{
		"0 group/a - 1 11 not a message of the broker: not UTF-8",
		"0 group/a - 1 ",
		"0 group/a - 1 ",
		"1 group/a P0001 1 ",
		"401 group/a P0001 1 ",
		"801 group/a - 1 ",
		"1000 group/a - 1 ",
	}
	if len(got) != len(want) {
		t.Fatalf("dead letters:\n%s", strings.Join(got, "\n"))
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("dead letter %q, want %q…", got[i], want[i])
		}
	}
	if !strings.Contains(got[3], "not in my archive") {
		t.Errorf("the reason is lost: %q", got[3])
	}
	if !strings.Contains(got[2], "trimmed its log") {
		t.Errorf("the gap is not told: %q", got[2])
	}

	// They come again after a crash: still one each.
	broker.mu.Lock()
	broker.log = append(broker.log, all[400], all[401])
	broker.mu.Unlock()
	broker.publish()
	archived(t, broker, pool, good)
	if again := letters(); len(again) != len(got) || !strings.HasPrefix(again[4], "401 group/a P0001 2 ") {
		t.Errorf("dead letters after they came again:\n%s", strings.Join(again, "\n"))
	}

	retried, stored, failed, err := archiver.RetryDeadLetters(t.Context(), pool)
	if err != nil || retried != 7 || stored != 0 || failed != 7 {
		t.Errorf("retry in vain: %d retried, %d stored, %d failed, %v", retried, stored, failed, err)
	}
	mustExec(t, pool, `DROP TRIGGER forbid ON messages`)
	retried, stored, failed, err = archiver.RetryDeadLetters(t.Context(), pool)
	if err != nil || retried != 7 || stored != 2 || failed != 5 {
		t.Errorf("retry: %d retried, %d stored, %d failed, %v", retried, stored, failed, err)
	}
	if n := mustQuery[int64](t, pool, `SELECT count(*) FROM messages WHERE seq IN (1, 401)`)[0]; n != 2 {
		t.Errorf("%d of 2 are stored after the retry", n)
	}
	if n := len(letters()); n != 5 {
		t.Errorf("%d dead letters after the retry, want 5", n)
	}
}

// Guards against columns of the user's own, which the table invites to add, that turn
// messages into dead letters: those with a default by way of the staging table, which
// lacked it, and that retrying went through as well; those without one for every message.
func TestColumnsOfTheUser(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	address := pgtest.New(t)
	pool := mustPool(t, address)
	mustExec(t, pool, `ALTER TABLE messages ADD COLUMN extra text NOT NULL DEFAULT 'x', ADD COLUMN id bigserial`)
	all := chatter(1, 300)
	a := mustStart(t, broker, address)
	broker.publish(all[:100]...)
	archived(t, broker, pool, all[:100])
	// They come again, as after a crash, and so the staging table is used.
	broker.mu.Lock()
	broker.log = append(broker.log, all[:10]...)
	broker.mu.Unlock()
	broker.publish(all[100:200]...)
	archived(t, broker, pool, all[:200])

	// What cannot be stored at all waits until the operator has mended the table.
	mustExec(t, pool, `ALTER TABLE messages ADD COLUMN mine text; UPDATE messages SET mine = ''; ALTER TABLE messages ALTER mine SET NOT NULL`)
	broker.publish(all[200:]...)
	waitfor.MustSucceed(t, "PostgreSQL takes none of them", func() error {
		if a.Lag().Database {
			return errors.New("not yet")
		}
		return nil
	})
	mustExec(t, pool, `ALTER TABLE messages ALTER mine SET DEFAULT ''`)
	archived(t, broker, pool, all)
	if n := mustQuery[int64](t, pool, `SELECT count(*) FROM dead_letters`)[0]; n != 0 {
		t.Errorf("%d dead letters, want none", n)
	}

	mustExec(t, pool, `INSERT INTO dead_letters (seq, topic, payload, reason) VALUES (301, 'group/a', $1, 'test')`, say(301, "alice", "group/a", "late").payload)
	if _, stored, failed, err := archiver.RetryDeadLetters(t.Context(), pool); err != nil || stored != 1 || failed != 0 {
		t.Errorf("retry: %d stored, %d failed, %v", stored, failed, err)
	}
}

// Guards against a stop that loses the last batch or does not tell the broker, and
// one that hangs, or acknowledges, when PostgreSQL is away.
func TestStop(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	server := pgtest.NewServer(t)
	pool := mustPool(t, server.URL())
	all := chatter(1, 600)
	a := mustStart(t, broker, server.URL(), func(c *archiver.Config) { c.Linger = time.Hour })
	broker.publish(all[:300]...)
	waitfor.MustSucceed(t, "all is received", func() error {
		if lag := a.Lag(); lag.Messages != 300 {
			return fmt.Errorf("%+v", lag)
		}
		return nil
	})
	if s := broker.session("archiver"); s.acked != 0 {
		t.Fatalf("%d are acknowledged before the batch was committed", s.acked)
	}
	for range 2 {
		if err := a.Stop(t.Context()); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	archived(t, broker, pool, all[:300])
	// Stop has sent it; the broker may have to be given a moment to read it.
	waitfor.MustHold(t, "DISCONNECT", func() bool { return broker.session("archiver").disconnects > 0 })
	if s := broker.session("archiver"); s.disconnects != 1 {
		t.Errorf("%d DISCONNECT packets, want 1", s.disconnects)
	}

	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Stop(syscall.SIGINT)
	broker.publish(all[300:]...)
	waitfor.MustSucceed(t, "the rest is received", func() error {
		if lag := a.Lag(); lag.Messages != 300 {
			return fmt.Errorf("%+v", lag)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := a.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stop without PostgreSQL: %v, want that the time is over", err)
	}
	if s := broker.session("archiver"); s.acked != 300 {
		t.Errorf("%d are acknowledged, want 300", s.acked)
	}

	server.Start()
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitfor.MustSucceed(t, "the rest is received again", func() error {
		if lag := a.Lag(); lag.Messages != 300 {
			return fmt.Errorf("%+v", lag)
		}
		return nil
	})
	if err := a.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	archived(t, broker, pool, all)
}

// Guards against two archivers that hurt each other or the archive: with sessions
// of their own, and with one session that each takes from the other.
func TestTwoArchivers(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	address := pgtest.New(t)
	pool := mustPool(t, address)
	onlyCommitted(t, broker, pool)
	small := func(c *archiver.Config) { c.BatchSize = 100 }
	mustStart(t, broker, address, small)
	mustStart(t, broker, address, small, func(c *archiver.Config) { c.ClientID = "another" })
	all := chatter(1, 10000)
	broker.publish(all[:7000]...)
	archived(t, broker, pool, all[:7000])
	waitfor.MustSucceed(t, "the other one has all, too", func() error {
		if s := broker.session("another"); s.acked != 7000 {
			return fmt.Errorf("%d acknowledged", s.acked)
		}
		return nil
	})

	mustStart(t, broker, address, small)
	broker.publish(all[7000:]...)
	archived(t, broker, pool, all)
	if n := mustQuery[int64](t, pool, `SELECT count(*) FROM dead_letters`)[0]; n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// Guards against memory that grows with what the broker has while PostgreSQL is
// away: this broker knows no window.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	broker.window = 1 << 30
	server := pgtest.NewServer(t)
	server.Stop(syscall.SIGINT)
	var all []delivery
	for i := range 2000 {
		all = append(all, say(uint64(i+1), "alice", "group/a", strings.Repeat("x", 10000)))
	}
	broker.publish(all...)
	const limit = 2 << 20
	a := mustStart(t, broker, server.URL(), func(c *archiver.Config) { c.MaxBytes = limit })
	fits := uint64(limit / (2*len(all[1999].payload) + 1024))
	waitfor.MustSucceed(t, "the memory is full", func() error {
		if lag := a.Lag(); lag.Messages < fits {
			return fmt.Errorf("%+v", lag)
		}
		return nil
	})
	for range 10 {
		if lag := a.Lag(); lag.Messages > fits+1 {
			t.Fatalf("%d messages are in memory, %d fit", lag.Messages, fits)
		}
		time.Sleep(10 * time.Millisecond) // time to do it wrong
	}
	server.Start()
	archived(t, broker, mustPool(t, server.URL()), all)
}

// Guards against an archiver that believes to be subscribed and archives nothing.
func TestSubscriptionRefused(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	broker.refuse = true
	reader, writer := io.Pipe()
	t.Cleanup(func() { _ = writer.Close() })
	found := make(chan struct{})
	go func() {
		defer close(found)
		text := ""
		buf := make([]byte, 4096)
		for !strings.Contains(text, "role must be archiver") {
			n, err := reader.Read(buf)
			if err != nil {
				return
			}
			text += string(buf[:n])
		}
		_ = reader.Close()
	}()
	a := mustStart(t, broker, pgtest.New(t), func(c *archiver.Config) { c.Logger = slog.New(slog.NewTextHandler(writer, nil)) })
	select {
	case <-found:
	case <-time.After(time.Minute):
		t.Error("no log line names the remedy")
	}
	if a.Lag().Connected {
		t.Error("the archiver says that it is connected")
	}
}

// Guards against a table without the migrations: the archiver must wait for them,
// and not store what it receives as dead letters.
func TestDatabaseNotMigrated(t *testing.T) {
	t.Parallel()
	broker := newFakeBroker(t)
	address := pgtest.NewEmpty(t)
	a := mustStart(t, broker, address)
	all := chatter(1, 10)
	broker.publish(all...)
	waitfor.MustSucceed(t, "all is received", func() error {
		if lag := a.Lag(); lag.Messages != 10 {
			return fmt.Errorf("%+v", lag)
		}
		return nil
	})
	if err := schema.Migrate(t.Context(), address); err != nil {
		t.Fatal(err)
	}
	archived(t, broker, mustPool(t, address), all)
}

func TestConfig(t *testing.T) {
	t.Parallel()
	good := archiver.Config{BrokerURL: "tcp://localhost:1883", DatabaseURL: "postgres://localhost/x"}
	if _, err := archiver.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*archiver.Config){
		"broker":   func(c *archiver.Config) { c.BrokerURL = "localhost:1883" },
		"database": func(c *archiver.Config) { c.DatabaseURL = "" },
		"batch":    func(c *archiver.Config) { c.BatchSize = -1 },
	} {
		bad := good
		change(&bad)
		if _, err := archiver.New(bad); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
