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

	"mynah/bench/testbed"
	"mynah/torture/ledger"
	"mynah/torture/proxy"
)

const database = "torture"

// harness is one run: the servers under test, the proxy links, the ledger and
// the settings.
type harness struct {
	*settings
	dir       string // everything is below it
	data      string // the broker's data folder, on a small disk of its own if possible
	mounted   bool
	ledger    *ledger.Ledger
	startedAt time.Time

	secret string
	pg     *testbed.Postgres

	// The ports of the servers themselves. Clients connect through the links.
	mqttPort, wsPort, metricsPort, archiverMetrics int

	clientLink, clientWSLink, archiverBrokerLink, archiverDBLink *proxy.Link

	broker, archiver, postgres *managedServer

	// exclusive is held for reading by every fault, and for writing by the
	// fault that must run alone.
	exclusive  sync.RWMutex
	diskMu     sync.Mutex // held while the disk is full
	diskFull   atomic.Bool
	diskGreedy atomic.Bool // and every byte that becomes free is taken
	ending     atomic.Bool

	counts struct {
		kills, stops, immediate, stalls, delays, full, tails, refused, skipped, lostSessions atomic.Int64
	}

	outMu   sync.Mutex // guards out and logFile
	out     io.Writer
	logFile *os.File // every printed line, and details that are not printed
}

func newHarness(ctx context.Context, s *settings, out io.Writer) (*harness, error) {
	dir, err := os.MkdirTemp(s.dir, "mynah-torture-")
	if err != nil {
		return nil, err
	}
	// PostgreSQL runs as another user and must be able to enter the folder.
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // see above
		return nil, err
	}
	h := &harness{
		settings: s, dir: dir, data: filepath.Join(dir, "data"), secret: testbed.NewSecret(), out: out, startedAt: time.Now(),
		ledger: ledger.New(ledger.Rules{Ordered: s.target == mynah}),
	}
	if err := os.Mkdir(h.data, 0o750); err != nil {
		return nil, err
	}
	if h.logFile, err = os.Create(filepath.Join(dir, "torture.log")); err != nil { //nolint:gosec // our own folder
		return nil, err
	}
	if s.faults && !s.noDisk {
		if err := h.mountSmallDisk(ctx); err != nil {
			h.logLine("NO FULL DISK WILL BE TRIED: %v", err)
		}
	}
	for _, p := range []*int{&h.mqttPort, &h.wsPort, &h.metricsPort, &h.archiverMetrics} {
		if *p, err = testbed.FreePort(); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// logLine prints a line with the time since the start.
func (h *harness) logLine(format string, args ...any) {
	h.outMu.Lock()
	defer h.outMu.Unlock()
	line := fmt.Sprintf("%7.2fs %s\n", time.Since(h.startedAt).Seconds(), fmt.Sprintf(format, args...))
	_, _ = io.WriteString(h.out, line)
	_, _ = io.WriteString(h.logFile, line)
}

// logToFile writes a line to torture.log only.
func (h *harness) logToFile(format string, args ...any) {
	h.outMu.Lock()
	defer h.outMu.Unlock()
	_, _ = fmt.Fprintf(h.logFile, "%7.2fs %s\n", time.Since(h.startedAt).Seconds(), fmt.Sprintf(format, args...))
}

func (h *harness) links() []*proxy.Link {
	return []*proxy.Link{h.clientLink, h.clientWSLink, h.archiverBrokerLink, h.archiverDBLink}
}

// start starts the servers and the links in front of them. The archiver starts
// later, when messages flow.
func (h *harness) start(ctx context.Context) error {
	var err error
	if h.pg, err = testbed.NewPostgres(filepath.Join(h.dir, "pg"), h.dir); err != nil {
		return err
	}
	for _, l := range []struct {
		link **proxy.Link
		name string
		port int
	}{
		{&h.clientLink, "clients by TCP", h.mqttPort},
		{&h.clientWSLink, "clients by WebSocket", h.wsPort},
		{&h.archiverBrokerLink, "archiver to broker", h.mqttPort},
		{&h.archiverDBLink, "archiver to PostgreSQL", h.pg.Port},
	} {
		if *l.link, err = proxy.Listen(l.name, l.port); err != nil {
			return err
		}
	}
	h.postgres = &managedServer{harness: h, name: "PostgreSQL", launch: func() (*testbed.Proc, error) {
		err := h.pg.Start(30 * time.Second)
		return h.pg.Proc(), err
	}}
	h.broker = &managedServer{harness: h, name: "broker", launch: h.launchBroker}
	h.archiver = &managedServer{harness: h, name: "archiver", launch: h.launchArchiver, supervised: true}
	if err := h.postgres.start(); err != nil {
		return err
	}
	if err := h.pg.CreateDatabase(ctx, database); err != nil {
		return err
	}
	if h.target == mynah {
		if err := testbed.MynahMigrate(h.bin, h.dir, h.pg.URL(database)); err != nil {
			return err
		}
	} else if err := h.buildCompare(ctx); err != nil {
		return err
	}
	return h.broker.start()
}

func (h *harness) launchBroker() (*testbed.Proc, error) {
	if h.target == mosquitto {
		return testbed.Mosquitto(&testbed.MosquittoSpec{Dir: h.dir, Port: h.mqttPort, WebSocket: h.wsPort, Persist: h.data})
	}
	return testbed.MynahBroker(&testbed.MynahSpec{
		Bin: h.bin, Logs: h.dir, DataDir: h.data, Secret: h.secret, MQTT: h.mqttPort, HTTP: h.wsPort, Metrics: h.metricsPort,
	})
}

func (h *harness) launchArchiver() (*testbed.Proc, error) {
	url := testbed.PostgresURL(h.archiverDBLink.Port, database)
	if h.target == mosquitto {
		return testbed.Start(&testbed.ProcSpec{Name: "compare", Dir: h.dir, Args: []string{
			filepath.Join(h.dir, "compare"), "--broker", fmt.Sprintf("tcp://127.0.0.1:%d", h.archiverBrokerLink.Port), "--database", url,
		}})
	}
	return testbed.StartMynahArchiver(&testbed.ArchiverSpec{
		Bin: h.bin, Logs: h.dir, Secret: h.secret, Broker: h.archiverBrokerLink.Port, Database: url, Metrics: h.archiverMetrics,
	})
}

func (h *harness) buildCompare(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(h.dir, "compare"), "./bench/compare") //nolint:gosec // our own paths
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build bench/compare: %w: %s", err, out)
	}
	return nil
}

// startArchiver starts the archiver for the first time.
func (h *harness) startArchiver(ctx context.Context) error {
	if h.target == mynah {
		select {
		case <-time.After(1500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	h.archiver.mu.Lock()
	defer h.archiver.mu.Unlock()
	return h.archiver.start()
}

// stopServers stops broker and archiver with SIGTERM, as an operator does.
// They must end by themselves, with status 0.
func (h *harness) stopServers() error {
	h.ending.Store(true)
	var errs []error
	for _, r := range []*managedServer{h.archiver, h.broker} {
		r.mu.Lock()
		if r.proc != nil {
			if err := r.proc.Stop(30 * time.Second); err != nil {
				errs = append(errs, fmt.Errorf("SIGTERM: %w: %s", err, r.proc.LogTail()))
			}
		}
		r.mu.Unlock()
	}
	if h.target == mosquitto {
		return nil // not its examination
	}
	return errors.Join(errs...)
}

// tearDown stops everything that still runs.
func (h *harness) tearDown() {
	h.ending.Store(true)
	h.logFile.Close() //nolint:errcheck,gosec // a log
	for _, r := range []*managedServer{h.archiver, h.broker} {
		if r == nil {
			continue
		}
		r.mu.Lock()
		if r.proc != nil {
			_ = r.proc.Kill()
		}
		r.mu.Unlock()
	}
	if h.postgres != nil {
		h.postgres.mu.Lock()
		if h.pg.Proc() != nil {
			_ = h.pg.Proc().SignalTree(syscall.SIGCONT) // in case of an interrupt
			_ = h.pg.Stop()
		}
		h.postgres.mu.Unlock()
	}
	for _, l := range h.links() {
		if l != nil {
			l.Close()
		}
	}
	if h.mounted {
		h.unmountSmallDisk()
	}
}

// archived returns the number of rows in the archive.
func (h *harness) archived(ctx context.Context) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, h.pg.URL(database))
	if err != nil {
		return 0, err
	}
	defer c.Close(ctx) //nolint:errcheck // nothing is lost
	err = c.QueryRow(ctx, "SELECT count(*) FROM messages").Scan(&n)
	return n, err
}

// readArchive records the whole archive in the ledger.
func (h *harness) readArchive(ctx context.Context) error {
	c, err := pgx.Connect(ctx, h.pg.URL(database))
	if err != nil {
		return fmt.Errorf("read the archive: %w", err)
	}
	defer c.Close(ctx) //nolint:errcheck // nothing is lost
	if h.target == mosquitto {
		return h.readPlainArchive(ctx, c)
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
			h.ledger.Violation("the archive's row %d is not a message: %v", seq, err)
			return nil
		}
		h.ledger.Archived(&ledger.Row{Seq: uint64(seq), Topic: topic, Sender: sender, Mid: mid, Content: content}) //nolint:gosec // positive by the table's constraint
		return nil
	}); err != nil {
		return fmt.Errorf("read the archive: %w", err)
	}
	var dead int
	if err := c.QueryRow(ctx, "SELECT count(*) FROM dead_letters").Scan(&dead); err != nil {
		return fmt.Errorf("read the dead letters: %w", err)
	}
	if dead > 0 {
		h.ledger.Violation("%d dead letters", dead)
	}
	return nil
}

func (h *harness) readPlainArchive(ctx context.Context, c *pgx.Conn) error {
	rows, err := c.Query(ctx, "SELECT topic, payload FROM messages ORDER BY id")
	if err != nil {
		return fmt.Errorf("read the archive: %w", err)
	}
	var topic, payload string
	_, err = pgx.ForEachRow(rows, []any{&topic, &payload}, func() error {
		content, err := ledger.ReadPlain([]byte(payload))
		if err != nil {
			h.ledger.Violation("the archive holds what is not a message: %v", err)
			return nil
		}
		h.ledger.Archived(&ledger.Row{Topic: topic, Content: content})
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the archive: %w", err)
	}
	return nil
}
