package testbed_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/jackc/pgx/v5"

	"mynah/bench/testbed"
)

// However PostgreSQL is killed, it starts again on the same folder with
// everything that was committed.
func TestPostgresComesBack(t *testing.T) {
	t.Parallel()
	dir := publicDir(t)
	pg, err := testbed.NewPostgres(filepath.Join(dir, "pg"), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Stop(); err != nil {
			t.Error(err)
		}
	})
	start := func() {
		t.Helper()
		if err := pg.Start(60 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	start()
	if err := pg.CreateDatabase(t.Context(), "db1"); err != nil {
		t.Fatal(err)
	}
	for i, end := range []func() error{pg.Kill, pg.StopImmediately, pg.Stop} {
		c, err := pgx.Connect(t.Context(), pg.URL("db1"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Exec(t.Context(), fmt.Sprintf("CREATE TABLE t%d ()", i)); err != nil {
			t.Fatal(err)
		}
		_ = c.Close(t.Context())
		if err := end(); err != nil {
			t.Fatal(err)
		}
		start()
		if c, err = pgx.Connect(t.Context(), pg.URL("db1")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Exec(t.Context(), fmt.Sprintf("SELECT FROM t%d", i)); err != nil {
			t.Error(err)
		}
		_ = c.Close(t.Context())
	}
	if family := pg.Proc().ProcessTree(); len(family) < 3 {
		t.Errorf("PostgreSQL is %d processes; its children are not seen", len(family))
	}
	if v := pg.Version(); !strings.Contains(v, ".") {
		t.Errorf("version %q", v)
	}
}

// publicDir returns a folder that PostgreSQL's account can enter.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := syscall.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestMosquittoIsStartedMeasuredAndStopped(t *testing.T) {
	t.Parallel()
	port, err := testbed.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	p, err := testbed.Mosquitto(&testbed.MosquittoSpec{Dir: t.TempDir(), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	if p.RSS() < 1000 || p.PeakRSS() < p.RSS()/2 || p.CPU() < 0 {
		t.Errorf("RSS %d KiB, peak %d KiB, CPU %s", p.RSS(), p.PeakRSS(), p.CPU())
	}
	if done, _ := p.Exited(); done {
		t.Error("it ended")
	}
	if err := p.Stop(30 * time.Second); err != nil {
		t.Error(err)
	}
	if done, _ := p.Exited(); !done {
		t.Error("it runs after Stop")
	}
}

// A program that ends during its start is reported at once, with its output.
func TestWaitPortTellsWhyItEnded(t *testing.T) {
	t.Parallel()
	p, err := testbed.Start(&testbed.ProcSpec{Name: "sh", Dir: t.TempDir(), Args: []string{"sh", "-c", "echo no luck; exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	port, err := testbed.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	err = p.WaitPort(fmt.Sprintf("127.0.0.1:%d", port), time.Minute)
	if err == nil || !strings.Contains(err.Error(), "no luck") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	secret := testbed.NewSecret()
	s, err := testbed.Token(secret, "alice", "device", "g1", "g2")
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.MapClaims{}
	if _, err := jwt.ParseWithClaims(s, claims, func(*jwt.Token) (any, error) { return []byte(secret), nil }); err != nil {
		t.Fatal(err)
	}
	if claims["sub"] != "alice" || claims["role"] != "device" || fmt.Sprint(claims["groups"]) != "[g1 g2]" {
		t.Errorf("claims %v", claims)
	}
}
