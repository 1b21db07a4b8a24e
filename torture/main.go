// Command torture checks that no acknowledged message is ever lost. It starts
// the real broker, archiver and PostgreSQL, and many publishers and subscribers
// that connect through a proxy. A ledger outside the product records all
// messages. While messages flow, torture kills and stops servers, cuts and
// delays connections, fills the disk and damages the log's tail, at random from
// a seed. In the end it waits until everything is delivered, and compares the
// ledger with the archive and the deliveries.
//
//	go run ./torture --duration 60s [--seed N] [--target mynah|mosquitto]
//
// The last line has the counts. The exit status is 0 if no violation was
// found.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// The brokers that can be tested.
const (
	mynah     = "mynah"
	mosquitto = "mosquitto"
)

type settings struct {
	duration time.Duration
	seed     uint64
	target   string
	bin      string
	rate     float64
	faults   bool
	noDisk   bool
	keep     bool
	only     string
	dir      string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		if !errors.Is(err, errFound) {
			fmt.Fprintln(os.Stderr, "torture:", err)
		}
		os.Exit(1)
	}
}

// errFound is returned by run when the ledger found something. The last line
// says what.
var errFound = errors.New("the ledger found something")

func parse(args []string) (*settings, error) {
	var s settings
	fs := flag.NewFlagSet("torture", flag.ContinueOnError)
	fs.DurationVar(&s.duration, "duration", 5*time.Minute, "how long messages flow and faults happen")
	fs.Uint64Var(&s.seed, "seed", 0, "what faults and timings are drawn from; 0 for a new one")
	fs.StringVar(&s.target, "target", mynah, "mynah, or mosquitto with the script in bench/compare")
	fs.StringVar(&s.bin, "bin", "bin/mynah", "Mynah's binary")
	fs.Float64Var(&s.rate, "rate", 400, "messages published a second, all publishers together")
	fs.BoolVar(&s.faults, "faults", true, "make faults; without, everything has to arrive from any broker")
	fs.BoolVar(&s.noDisk, "no-disk-fault", false, "do without the full disk, which needs the right to mount a disk")
	fs.BoolVar(&s.keep, "keep", false, "keep the folder with data and logs even if all is well")
	fs.StringVar(&s.only, "only", "", "only faults whose name holds this, to narrow a failure down")
	fs.StringVar(&s.dir, "dir", os.TempDir(), "where the folder with data and logs is made")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if s.target != mynah && s.target != mosquitto {
		return nil, fmt.Errorf("--target: %q is neither %s nor %s", s.target, mynah, mosquitto)
	}
	if s.seed == 0 {
		s.seed = uint64(time.Now().UnixNano()) % 1_000_000_000 //nolint:gosec // a time after 1970
	}
	if s.target == mynah {
		var err error
		if s.bin, err = filepath.Abs(s.bin); err != nil {
			return nil, err
		}
		if _, err := os.Stat(s.bin); err != nil {
			return nil, fmt.Errorf("--bin: %w; build it with `make build`", err)
		}
	}
	return &s, nil
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	s, err := parse(args)
	if err != nil {
		return err
	}
	h, err := newHarness(ctx, s, out)
	if err != nil {
		return err
	}
	defer func() {
		h.tearDown()
		if err == nil && !s.keep {
			err = os.RemoveAll(h.dir)
			return
		}
		fmt.Fprintf(os.Stderr, "data and logs are kept in %s\n", h.dir)
	}()
	h.logLine("seed %d, %s for %s, data and logs in %s", s.seed, s.target, s.duration, h.dir)
	if err := h.start(ctx); err != nil {
		return err
	}
	if s.target == mosquitto {
		if err := h.startArchiver(ctx); err != nil {
			return err
		}
	}
	all, err := connectClients(ctx, h)
	if err != nil {
		return err
	}
	flowing, stopFlow := context.WithTimeout(ctx, s.duration)
	defer stopFlow()
	all.startPublishing(flowing)
	// Messages that are acknowledged before the archiver's first start must be
	// archived too. The script bench/compare cannot do that, so it starts
	// first.
	if s.target == mynah {
		if err := h.startArchiver(ctx); err != nil {
			return err
		}
	}
	if s.faults {
		go h.supervise(ctx)
		h.injectFaults(flowing, all)
	}
	<-flowing.Done()
	all.stopPublishing()
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	h.logLine("no more faults; everything has to settle now")
	all.waitAllDelivered(ctx, h)
	all.stopAll()
	if err := h.stopServers(); err != nil {
		h.ledger.Violation("at the end: %v", err)
	}
	if err := h.readArchive(ctx); err != nil {
		return err
	}
	return h.report(out)
}

func (h *harness) report(out io.Writer) error {
	r := h.ledger.Check()
	sent, _, _ := h.ledger.Totals()
	for _, d := range r.Details {
		h.logLine("FOUND %s", d)
	}
	h.logLine("sent=%d received=%d redelivered=%d odd=%d immediate=%d stalls=%d delays=%d full=%d tails=%d tails_refused=%d tails_skipped=%d sessions_kept=%v",
		sent, r.Received, r.Redelivered, r.OtherViolations, h.counts.immediate.Load(), h.counts.stalls.Load(), h.counts.delays.Load(),
		h.counts.full.Load(), h.counts.tails.Load(), h.counts.refused.Load(), h.counts.skipped.Load(), h.counts.lostSessions.Load() == 0)
	cuts := 0
	for _, l := range h.links() {
		cuts += l.Cuts()
	}
	missingFaults := h.faultsNotMade()
	for _, f := range missingFaults {
		h.logLine("NOT COVERED: %s", f)
	}
	if _, err := fmt.Fprintf(out, "acked=%d archived=%d missing=%d duplicate=%d reordered=%d kills=%d stops=%d cuts=%d seed=%d\n",
		r.Acked, r.Archived, r.Missing, r.Duplicate, r.Reordered, h.counts.kills.Load(), h.counts.stops.Load(), cuts, h.seed); err != nil {
		return err
	}
	if !r.OK() || len(missingFaults) > 0 {
		return errFound
	}
	return nil
}
