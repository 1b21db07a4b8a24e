package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/bench/stand"
	"mynah/torture/ledger"
	"mynah/torture/proxy"
)

const database = "torture"

// world is everything that is tortured and what it is tortured with.
type world struct {
	*settings
	dir     string // everything is below it
	data    string // the broker's data folder, on a small disk of its own if possible
	mounted bool
	ledger  *ledger.Ledger
	began   time.Time

	secret string
	pg     *stand.Postgres

	// The ports of the servers themselves; everybody goes through the links.
	mqttPort, wsPort, metricsPort, archiverMetrics int

	people, peopleWS, archiveIn, archiveOut *proxy.Link

	broker, archiver, postgres *role

	// quiet is held for reading by every fault and for writing by the one
	// that needs all others to have ended.
	quiet      sync.RWMutex
	diskMu     sync.Mutex // held while the disk is full
	diskFull   atomic.Bool
	diskGreedy atomic.Bool // and nothing can become free
	ending     atomic.Bool

	count struct {
		kills, stops, immediate, stalls, delays, full, tails, refused, skipped, lostSessions atomic.Int64
	}

	outMu   sync.Mutex // guards out and logFile
	out     io.Writer
	logFile *os.File // everything that is said, and what is too much for people
}

func newWorld(ctx context.Context, s *settings, out io.Writer) (*world, error) {
	dir, err := os.MkdirTemp(s.dir, "mynah-torture-")
	if err != nil {
		return nil, err
	}
	// PostgreSQL runs as another user and must be able to pass.
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // see above
		return nil, err
	}
	w := &world{
		settings: s, dir: dir, data: filepath.Join(dir, "data"), secret: stand.NewSecret(), out: out, began: time.Now(),
		ledger: ledger.New(ledger.Rules{Ordered: s.target == mynah}),
	}
	if err := os.Mkdir(w.data, 0o750); err != nil {
		return nil, err
	}
	if w.logFile, err = os.Create(filepath.Join(dir, "torture.log")); err != nil { //nolint:gosec // our own folder
		return nil, err
	}
	if s.faults && !s.noDisk {
		if err := w.mountSmallDisk(ctx); err != nil {
			w.say("NO FULL DISK WILL BE TRIED: %v", err)
		}
	}
	for _, p := range []*int{&w.mqttPort, &w.wsPort, &w.metricsPort, &w.archiverMetrics} {
		if *p, err = stand.FreePort(); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// say prints a line with the time since the start.
func (w *world) say(format string, args ...any) {
	w.outMu.Lock()
	defer w.outMu.Unlock()
	line := fmt.Sprintf("%7.2fs %s\n", time.Since(w.began).Seconds(), fmt.Sprintf(format, args...))
	_, _ = io.WriteString(w.out, line)
	_, _ = io.WriteString(w.logFile, line)
}

// log writes a line to torture.log only.
func (w *world) log(format string, args ...any) {
	w.outMu.Lock()
	defer w.outMu.Unlock()
	_, _ = fmt.Fprintf(w.logFile, "%7.2fs %s\n", time.Since(w.began).Seconds(), fmt.Sprintf(format, args...))
}

func (w *world) links() []*proxy.Link {
	return []*proxy.Link{w.people, w.peopleWS, w.archiveIn, w.archiveOut}
}

// start starts the servers and the links before them, but for the archiver, which
// comes when messages flow already.
func (w *world) start(ctx context.Context) error {
	var err error
	if w.pg, err = stand.NewPostgres(filepath.Join(w.dir, "pg"), w.dir); err != nil {
		return err
	}
	for _, l := range []struct {
		link **proxy.Link
		name string
		port int
	}{
		{&w.people, "people by TCP", w.mqttPort},
		{&w.peopleWS, "people by WebSocket", w.wsPort},
		{&w.archiveIn, "archiver to broker", w.mqttPort},
		{&w.archiveOut, "archiver to PostgreSQL", w.pg.Port},
	} {
		if *l.link, err = proxy.Listen(l.name, l.port); err != nil {
			return err
		}
	}
	w.postgres = &role{world: w, name: "PostgreSQL", launch: func() (*stand.Proc, error) {
		err := w.pg.Start(30 * time.Second)
		return w.pg.Proc(), err
	}}
	w.broker = &role{world: w, name: "broker", launch: w.launchBroker}
	w.archiver = &role{world: w, name: "archiver", launch: w.launchArchiver, supervised: true}
	if err := w.postgres.start(); err != nil {
		return err
	}
	if err := w.pg.CreateDatabase(ctx, database); err != nil {
		return err
	}
	if w.target == mynah {
		if err := stand.MynahMigrate(w.bin, w.dir, w.pg.URL(database)); err != nil {
			return err
		}
	} else if err := w.buildCompare(ctx); err != nil {
		return err
	}
	return w.broker.start()
}

func (w *world) launchBroker() (*stand.Proc, error) {
	if w.target == mosquitto {
		return stand.Mosquitto(&stand.MosquittoSpec{Dir: w.dir, Port: w.mqttPort, WebSocket: w.wsPort, Persist: w.data})
	}
	return stand.MynahBroker(&stand.MynahSpec{
		Bin: w.bin, Logs: w.dir, DataDir: w.data, Secret: w.secret, MQTT: w.mqttPort, HTTP: w.wsPort, Metrics: w.metricsPort,
	})
}

func (w *world) launchArchiver() (*stand.Proc, error) {
	url := stand.PostgresURL(w.archiveOut.Port, database)
	if w.target == mosquitto {
		return stand.Start(&stand.Spec{Name: "compare", Dir: w.dir, Args: []string{
			filepath.Join(w.dir, "compare"), "--broker", fmt.Sprintf("tcp://127.0.0.1:%d", w.archiveIn.Port), "--database", url,
		}})
	}
	return stand.StartMynahArchiver(&stand.ArchiverSpec{
		Bin: w.bin, Logs: w.dir, Secret: w.secret, Broker: w.archiveIn.Port, Database: url, Metrics: w.archiverMetrics,
	})
}

func (w *world) buildCompare(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(w.dir, "compare"), "./bench/compare") //nolint:gosec // our own paths
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build bench/compare: %w: %s", err, out)
	}
	return nil
}

// startArchiver starts the archiver for the first time.
func (w *world) startArchiver(ctx context.Context) error {
	if w.target == mynah {
		select {
		case <-time.After(1500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	w.archiver.mu.Lock()
	defer w.archiver.mu.Unlock()
	return w.archiver.start()
}

// stopServers ends broker and archiver as an operator does, with SIGTERM. They
// are to end by themselves and with status 0.
func (w *world) stopServers() error {
	w.ending.Store(true)
	var errs []error
	for _, r := range []*role{w.archiver, w.broker} {
		r.mu.Lock()
		if r.proc != nil {
			if err := r.proc.Stop(30 * time.Second); err != nil {
				errs = append(errs, fmt.Errorf("SIGTERM: %w: %s", err, r.proc.Tail()))
			}
		}
		r.mu.Unlock()
	}
	if w.target == mosquitto {
		return nil // not its examination
	}
	return errors.Join(errs...)
}

// tearDown ends whatever still runs.
func (w *world) tearDown() {
	w.ending.Store(true)
	w.logFile.Close() //nolint:errcheck,gosec // a log
	for _, r := range []*role{w.archiver, w.broker} {
		if r == nil {
			continue
		}
		r.mu.Lock()
		if r.proc != nil {
			_ = r.proc.Kill()
		}
		r.mu.Unlock()
	}
	if w.postgres != nil {
		w.postgres.mu.Lock()
		if w.pg.Proc() != nil {
			_ = w.pg.Proc().SignalFamily(syscall.SIGCONT) // in case of an interrupt
			_ = w.pg.Stop()
		}
		w.postgres.mu.Unlock()
	}
	for _, l := range w.links() {
		if l != nil {
			l.Close()
		}
	}
	if w.mounted {
		w.unmountSmallDisk()
	}
}

// archived returns how many rows the archive has.
func (w *world) archived(ctx context.Context) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, w.pg.URL(database))
	if err != nil {
		return 0, err
	}
	defer c.Close(ctx) //nolint:errcheck // nothing is lost
	err = c.QueryRow(ctx, "SELECT count(*) FROM messages").Scan(&n)
	return n, err
}

// readArchive enters the whole archive into the ledger.
func (w *world) readArchive(ctx context.Context) error {
	c, err := pgx.Connect(ctx, w.pg.URL(database))
	if err != nil {
		return fmt.Errorf("read the archive: %w", err)
	}
	defer c.Close(ctx) //nolint:errcheck // nothing is lost
	if w.target == mosquitto {
		return w.readPlainArchive(ctx, c)
	}
	rows, err := c.Query(ctx, "SELECT seq, topic, sender, coalesce(mid, ''), message::text FROM messages ORDER BY seq")
	if err != nil {
		return fmt.Errorf("read the archive: %w", err)
	}
	var seq int64
	var topic, sender, mid, message string
	if _, err = pgx.ForEachRow(rows, []any{&seq, &topic, &sender, &mid, &message}, func() error {
		content, err := ledger.ReadEnvelope([]byte(message), true)
		if err != nil {
			w.ledger.Odd("the archive's row %d is not a message: %v", seq, err)
			return nil
		}
		w.ledger.Archived(&ledger.Row{Seq: uint64(seq), Topic: topic, Sender: sender, Mid: mid, Content: content}) //nolint:gosec // positive by the table's constraint
		return nil
	}); err != nil {
		return fmt.Errorf("read the archive: %w", err)
	}
	var dead int
	if err := c.QueryRow(ctx, "SELECT count(*) FROM dead_letters").Scan(&dead); err != nil {
		return fmt.Errorf("read the dead letters: %w", err)
	}
	if dead > 0 {
		w.ledger.Odd("%d dead letters", dead)
	}
	return nil
}

func (w *world) readPlainArchive(ctx context.Context, c *pgx.Conn) error {
	rows, err := c.Query(ctx, "SELECT topic, payload FROM messages ORDER BY id")
	if err != nil {
		return fmt.Errorf("read the archive: %w", err)
	}
	var topic, payload string
	_, err = pgx.ForEachRow(rows, []any{&topic, &payload}, func() error {
		content, err := ledger.ReadPlain([]byte(payload))
		if err != nil {
			w.ledger.Odd("the archive holds what is not a message: %v", err)
			return nil
		}
		w.ledger.Archived(&ledger.Row{Topic: topic, Content: content})
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the archive: %w", err)
	}
	return nil
}
