// Command torture proves that nothing that was acknowledged is ever lost, or
// shows what is. It starts the real broker, archiver and PostgreSQL, many
// publishers and subscribers that reach them through a proxy, and a ledger that
// is kept outside of the product; while messages flow it kills, stops, cuts,
// delays, fills the disk and damages the log's tail, at random from a seed; in
// the end it lets everything settle and compares the ledger with what is there.
//
//	go run ./torture --duration 60s [--seed N] [--target mynah|mosquitto]
//
// The last line says what was found. The exit status is 0 if nothing was.
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

// The brokers that can be tortured.
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
	w, err := newWorld(ctx, s, out)
	if err != nil {
		return err
	}
	defer func() {
		w.tearDown()
		if err == nil && !s.keep {
			err = os.RemoveAll(w.dir)
			return
		}
		fmt.Fprintf(os.Stderr, "data and logs are kept in %s\n", w.dir)
	}()
	w.say("seed %d, %s for %s, data and logs in %s", s.seed, s.target, s.duration, w.dir)
	if err := w.start(ctx); err != nil {
		return err
	}
	if s.target == mosquitto {
		if err := w.startArchiver(ctx); err != nil {
			return err
		}
	}
	people, err := gather(ctx, w)
	if err != nil {
		return err
	}
	flowing, stopFlow := context.WithTimeout(ctx, s.duration)
	defer stopFlow()
	people.publish(flowing)
	// What is acknowledged before the archiver has ever been there is archived
	// too. The plain script cannot do that and is there from the beginning.
	if s.target == mynah {
		if err := w.startArchiver(ctx); err != nil {
			return err
		}
	}
	if s.faults {
		go w.supervise(ctx)
		w.torment(flowing, people)
	}
	<-flowing.Done()
	people.stopPublishing()
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	w.say("no more faults; everything has to settle now")
	people.settle(ctx, w)
	people.leave()
	if err := w.stopServers(); err != nil {
		w.ledger.Odd("at the end: %v", err)
	}
	if err := w.readArchive(ctx); err != nil {
		return err
	}
	return w.judge(out)
}

func (w *world) judge(out io.Writer) error {
	r := w.ledger.Check()
	sent, _, _ := w.ledger.Totals()
	for _, d := range r.Details {
		w.say("FOUND %s", d)
	}
	w.say("sent=%d received=%d redelivered=%d odd=%d immediate=%d stalls=%d delays=%d full=%d tails=%d tails_refused=%d tails_skipped=%d sessions_kept=%v",
		sent, r.Received, r.Redelivered, r.Odd, w.count.immediate.Load(), w.count.stalls.Load(), w.count.delays.Load(),
		w.count.full.Load(), w.count.tails.Load(), w.count.refused.Load(), w.count.skipped.Load(), w.count.lostSessions.Load() == 0)
	cuts := 0
	for _, l := range w.links() {
		cuts += l.Cuts()
	}
	missingFaults := w.uncovered()
	for _, f := range missingFaults {
		w.say("NOT COVERED: %s", f)
	}
	if _, err := fmt.Fprintf(out, "acked=%d archived=%d missing=%d duplicate=%d reordered=%d kills=%d stops=%d cuts=%d seed=%d\n",
		r.Acked, r.Archived, r.Missing, r.Duplicate, r.Reordered, w.count.kills.Load(), w.count.stops.Load(), cuts, w.seed); err != nil {
		return err
	}
	if !r.OK() || len(missingFaults) > 0 {
		return errFound
	}
	return nil
}
