package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Account is the unprivileged user that a program runs as.
type Account struct{ UID, GID uint32 }

// Postgres is a private PostgreSQL cluster. Its settings are PostgreSQL's
// defaults, except the port and the socket's folder.
type Postgres struct {
	Dir  string // the cluster's folder
	Port int

	logs string
	bin  string
	acct *Account
	proc *Proc
}

// NewPostgres makes a cluster in dir. It is not running yet.
func NewPostgres(dir, logs string) (*Postgres, error) {
	bin, err := postgresBin()
	if err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	pg := &Postgres{Dir: filepath.Join(dir, "cluster"), Port: port, logs: logs, bin: bin}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		// PostgreSQL refuses to run as root.
		if pg.acct, err = unprivilegedAccount(); err != nil {
			return nil, err
		}
		if err := os.Chown(dir, int(pg.acct.UID), int(pg.acct.GID)); err != nil {
			return nil, fmt.Errorf("hand %s to an ordinary user: %w", dir, err)
		}
	}
	init, err := Start(&ProcSpec{
		Name: "initdb", Dir: logs, User: pg.acct,
		Args: []string{filepath.Join(bin, "initdb"), "-D", pg.Dir, "-U", "mynah", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-instructions"},
	})
	if err != nil {
		return nil, err
	}
	<-init.Done()
	if _, err := init.Exited(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, init.LogTail())
	}
	return pg, nil
}

func postgresBin() (string, error) {
	if p, err := exec.LookPath("initdb"); err == nil {
		if p, err = filepath.EvalSymlinks(p); err == nil {
			return filepath.Dir(p), nil
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return "", errors.New("no PostgreSQL server here: install it with `apt-get install postgresql`")
	}
	slices.Sort(found)
	return filepath.Dir(found[len(found)-1]), nil
}

func unprivilegedAccount() (*Account, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &Account{UID: uint32(uid), GID: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root and there is neither a user postgres nor nobody to run it as")
}

// Start starts the server and waits until it answers. After a kill, PostgreSQL
// refuses the folder until all processes of the killed server have ended. Start
// retries until then.
func (pg *Postgres) Start(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		p, err := Start(&ProcSpec{
			Name: "postgres", Dir: pg.logs, User: pg.acct,
			Args: []string{
				filepath.Join(pg.bin, "postgres"), "-D", pg.Dir, "-p", strconv.Itoa(pg.Port),
				"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=" + filepath.Dir(pg.Dir),
			},
		})
		if err != nil {
			return err
		}
		pg.proc = p
		for {
			if done, _ := p.Exited(); done {
				break
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			c, err := pgx.Connect(ctx, pg.URL("postgres"))
			if err == nil {
				err = c.Close(ctx)
			}
			cancel()
			if err == nil {
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("PostgreSQL does not answer after %s: %w: %s", timeout, err, p.LogTail())
			}
			time.Sleep(20 * time.Millisecond)
		}
		if time.Now().After(deadline) {
			_, err := p.Exited()
			return fmt.Errorf("PostgreSQL ended at start: %w: %s", exitError(err), p.LogTail())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Proc returns the server's process, nil before the first Start.
func (pg *Postgres) Proc() *Proc { return pg.proc }

// Kill kills the postmaster with SIGKILL; its children notice and end.
func (pg *Postgres) Kill() error { return pg.proc.Kill() }

// StopImmediately ends the server without a checkpoint, as pg_ctl stop -m
// immediate does.
func (pg *Postgres) StopImmediately() error {
	if err := pg.proc.Signal(syscall.SIGQUIT); err != nil {
		return err
	}
	select {
	case <-pg.proc.Done():
		return nil
	case <-time.After(10 * time.Second):
		return pg.proc.Kill()
	}
}

// Stop ends the server in fast mode.
func (pg *Postgres) Stop() error {
	if pg.proc == nil {
		return nil
	}
	if err := pg.proc.Signal(syscall.SIGINT); err != nil {
		return err
	}
	select {
	case <-pg.proc.Done():
		return nil
	case <-time.After(15 * time.Second):
		return pg.StopImmediately()
	}
}

// URL returns the address of a database on the server itself.
func (pg *Postgres) URL(db string) string { return PostgresURL(pg.Port, db) }

// PostgresURL returns the address of a database behind any port of this machine.
func PostgresURL(port int, db string) string {
	return fmt.Sprintf("postgres://mynah@127.0.0.1:%d/%s?sslmode=disable", port, db)
}

// CreateDatabase makes an empty database. The name is of letters and digits.
func (pg *Postgres) CreateDatabase(ctx context.Context, name string) error {
	c, err := pgx.Connect(ctx, pg.URL("postgres"))
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	defer c.Close(ctx) //nolint:errcheck // nothing is lost
	if _, err := c.Exec(ctx, "CREATE DATABASE "+strconv.Quote(name)); err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// Version returns the server's version, such as 15.13.
func (pg *Postgres) Version() string {
	out, err := exec.CommandContext(context.Background(), filepath.Join(pg.bin, "postgres"), "--version").Output() //nolint:gosec // a path found above
	if err != nil {
		return "unknown"
	}
	f := strings.Fields(string(out))
	if len(f) < 3 {
		return "unknown"
	}
	return f[2]
}
