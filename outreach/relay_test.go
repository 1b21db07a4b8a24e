package outreach_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/authhook"
	"mynah/broker"
	"mynah/groups"
	"mynah/internal/leak"
	"mynah/internal/mqttest"
	"mynah/internal/pgtest"
	"mynah/internal/waitfor"
	"mynah/outreach"
	"mynah/schema/pgtx"
)

func TestMain(m *testing.M) {
	if os.Getenv(childDatabase) != "" {
		if err := runChild(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	leak.Main(m)
}

var secret = []byte("a secret for tests, 32 bytes or more")

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func mint(tb testing.TB, subject string, role authhook.Role) string {
	tb.Helper()
	token, err := authhook.Mint(secret, authhook.TokenClaims{Subject: subject, Role: role, TTL: time.Hour})
	must(tb, err)
	return token
}

// startBroker runs a broker without a directory: services may publish anywhere.
func startBroker(tb testing.TB) *broker.Broker {
	tb.Helper()
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: secret})
	must(tb, err)
	b, err := broker.New(broker.Config{DataDir: tb.TempDir(), MQTTAddr: "127.0.0.1:0", Verifier: verifier})
	must(tb, err)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
		defer cancel()
		must(tb, b.Stop(ctx))
		verifier.Close()
	})
	must(tb, b.Start(context.Background()))
	return b
}

// startRelay starts a relay; stop ends it, as does the end of the test.
func startRelay(tb testing.TB, db, address string) (r *outreach.Relay, stop func()) {
	tb.Helper()
	r, err := outreach.New(outreach.Config{
		DatabaseURL: db, BrokerURL: "tcp://" + address,
		Token:  func(context.Context) (string, error) { return mint(tb, outreach.Subject, authhook.RoleService), nil },
		Logger: slog.New(slog.DiscardHandler),
	})
	must(tb, err)
	must(tb, r.Start(context.Background()))
	stop = func() {
		ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
		defer cancel()
		must(tb, r.Stop(ctx))
	}
	tb.Cleanup(stop)
	return r, stop
}

func count(tb testing.TB, pool *pgxpool.Pool, query string) (n int) {
	tb.Helper()
	must(tb, pool.QueryRow(context.Background(), query).Scan(&n))
	return n
}

// A notice is a message from the system, in the order of the changes.
func TestNoticesAreMessages(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool, err := pgxpool.New(context.Background(), db)
	must(t, err)
	defer pool.Close()
	b := startBroker(t)
	all := mqttest.Dial(t, b.MQTTAddr().String(), mqttest.Options{Version: 5, ClientID: "all", Token: mint(t, "reader", authhook.RoleService)})
	all.Subscribe(1, "group/#", "user/#")
	startRelay(t, db, b.MQTTAddr().String())

	s := groups.New(pgtx.New(pool), groups.Config{})
	ctx := context.Background()
	alice, bob := groups.Actor{ID: "alice"}, groups.Actor{ID: "bob"}
	g, err := s.Create(ctx, alice, groups.GroupSpec{Name: "one", Join: groups.JoinOpen})
	must(t, err)
	_, err = s.Joining.Join(ctx, bob, g.ID, "")
	must(t, err)
	name := "two"
	_, err = s.Edit(ctx, alice, g.ID, groups.GroupEdit{Name: &name})
	must(t, err)
	must(t, s.Members.Kick(ctx, alice, g.ID, "bob"))
	must(t, s.Dissolve(ctx, alice, g.ID))
	var got []string
	for len(got) == 0 || !strings.HasPrefix(got[len(got)-1], "notice.group.dissolved") {
		m := all.ReceiveAcked()
		if m.From != outreach.Subject || m.Mid == "" {
			t.Fatalf("from %q mid %q", m.From, m.Mid)
		}
		got = append(got, m.Type+" "+strings.ReplaceAll(m.To, g.ID, "g"))
	}
	want := []string{
		"notice.group.created group/g", "notice.group.created user/alice",
		"notice.group.joined group/g", "notice.group.joined user/bob",
		"notice.group.renamed group/g",
		"notice.group.kicked group/g", "notice.group.kicked user/bob",
		"notice.group.dissolved group/g",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("notices\n%q, want\n%q", got, want)
	}
	// Members of a dissolved group stay until they have been told.
	waitfor.MustHold(t, "members of a dissolved group are removed", func() bool { return count(t, pool, `SELECT count(*) FROM members`) == 0 })
	if n := count(t, pool, `SELECT count(*) FROM outbox`); n != 0 {
		t.Errorf("%d notices are left in the outbox", n)
	}
}

// Guards against a large group that is dissolved and holds up everybody's notices while
// its members are removed: that is done in pieces, with what comes meanwhile in between.
func TestDissolvingALargeGroup(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool, err := pgxpool.New(context.Background(), db)
	must(t, err)
	defer pool.Close()
	b := startBroker(t)
	_, err = pool.Exec(context.Background(), `
		INSERT INTO groups (id, dissolved_at) VALUES ('crowd', now()), ('small', now());
		INSERT INTO members (grp, account) SELECT 'crowd', 'p' || i FROM generate_series(1, 5000) i;
		INSERT INTO members (grp, account) VALUES ('small', 'p1');
		CREATE TABLE pieces (n bigint);
		CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN INSERT INTO pieces SELECT count(*) FROM touched; RETURN NULL; END $$;
		CREATE TRIGGER note AFTER DELETE ON members REFERENCING OLD TABLE AS touched FOR EACH STATEMENT EXECUTE FUNCTION note()`)
	must(t, err)
	startRelay(t, db, b.MQTTAddr().String())
	waitfor.MustHold(t, "the members are removed", func() bool { return count(t, pool, `SELECT count(*) FROM members`) == 0 })
	if n := count(t, pool, `SELECT max(n) FROM pieces`); n > 2000 {
		t.Errorf("%d members were removed in one statement", n)
	}
}

// deaf is a proxy that passes publishes on and, while it is set, loses the
// acknowledgements: to the relay it looks as if it had crashed between the publish
// and the deletion.
type deaf struct {
	listener net.Listener
	target   string
	on       atomic.Bool
	mu       sync.Mutex
	conns    []net.Conn
	tasks    sync.WaitGroup
}

func newDeaf(tb testing.TB, target string) *deaf {
	tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	must(tb, err)
	d := &deaf{listener: l, target: target}
	d.tasks.Go(d.accept)
	tb.Cleanup(func() {
		_ = l.Close()
		d.cut()
		d.tasks.Wait()
	})
	return d
}

func (d *deaf) accept() {
	for {
		in, err := d.listener.Accept()
		if err != nil {
			return
		}
		out, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", d.target)
		if err != nil {
			_ = in.Close()
			continue
		}
		d.mu.Lock()
		d.conns = append(d.conns, in, out)
		d.mu.Unlock()
		d.tasks.Go(func() { _, _ = io.Copy(out, in); _ = out.Close() })
		d.tasks.Go(func() {
			buf := make([]byte, 4096)
			for {
				n, err := out.Read(buf)
				if err != nil {
					break
				}
				// PUBACK is 0x40; before that CONNACK and SUBACK come through.
				if d.on.Load() && buf[0] == 0x40 {
					break
				}
				if _, err := in.Write(buf[:n]); err != nil {
					break
				}
			}
			_ = in.Close()
			_ = out.Close()
		})
	}
}

func (d *deaf) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		_ = c.Close()
	}
}

// Commit, publish, and then a crash before the deletion, again and again: each
// notice is in the log once. Without mid, or with a deletion before the
// acknowledgement, this fails.
func TestExactlyOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	pool, err := pgxpool.New(context.Background(), db)
	must(t, err)
	defer pool.Close()
	b := startBroker(t)
	proxy := newDeaf(t, b.MQTTAddr().String())
	proxy.on.Store(true)

	all := mqttest.Dial(t, b.MQTTAddr().String(), mqttest.Options{Version: 5, ClientID: "all", Token: mint(t, "reader", authhook.RoleService)})
	all.Subscribe(1, "group/#")
	const notices = 50
	for i := range notices { // committed while no relay runs, as by an API that crashed
		_, err := pool.Exec(context.Background(), `INSERT INTO outbox (topic, type, body) VALUES ('group/g', 'notice.test', $1)`, fmt.Sprintf(`{"n":%d}`, i))
		must(t, err)
	}
	_, stop := startRelay(t, db, proxy.listener.Addr().String())
	// It publishes, and never hears an acknowledgement.
	for range notices {
		all.ReceiveAcked()
	}
	stop()
	if n := count(t, pool, `SELECT count(*) FROM outbox`); n == 0 {
		t.Fatal("notices were deleted without an acknowledgement")
	}
	// Two others take over, with the acknowledgements; then one more notice.
	proxy.on.Store(false)
	startRelay(t, db, proxy.listener.Addr().String())
	startRelay(t, db, b.MQTTAddr().String())
	_, err = pool.Exec(context.Background(), `INSERT INTO outbox (topic, type, body) VALUES ('group/g', 'notice.test', '{"n":50}')`)
	must(t, err)
	m := all.ReceiveAcked()
	if text, _ := json.Marshal(m.Body); string(text) != `{"n":50}` {
		t.Errorf("after 50 notices came %s: one came twice", text)
	}
	waitfor.MustHold(t, "the outbox is empty", func() bool { return count(t, pool, `SELECT count(*) FROM outbox`) == 0 })
	all.ExpectNothing()
}
