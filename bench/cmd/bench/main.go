// Command bench compares Mynah with Mosquitto in one run. The two servers are
// measured by turns, by one load generator, which checks every delivery for
// loss, repetition and order. bench/README.md says what each row is.
//
//	go run ./bench/cmd/bench [--quick] [--rows fan1,fan0] [--rounds 3] [--duration 5s]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mynah/bench/load"
	"mynah/bench/testbed"
)

// settings are the command line.
type settings struct {
	bin      string
	dir      string
	rows     []string
	targets  []string
	rounds   int
	duration time.Duration
	idle     int
	crowd    int
	catchup  int
	fan      int
	checkSeq bool
	jsonOut  string
	mdOut    string
	profiles string
	args     []string // for mynah broker
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "rawfan" {
		port, err := strconv.Atoi(os.Args[2])
		if err == nil {
			err = load.ServeRawFan(port)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string, stderr io.Writer) (*settings, error) {
	var s settings
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&s.bin, "bin", "bin/mynah", "Mynah's binary")
	fs.StringVar(&s.dir, "dir", os.TempDir(), "where data folders are made: choose the disk that is to be measured")
	rows := fs.String("rows", "", "rows to measure, separated by commas; all by default: "+strings.Join(rowKeys(), ","))
	targets := fs.String("targets", "mynah,mosquitto", "what to measure")
	fs.IntVar(&s.rounds, "rounds", 3, "how often each row is measured; medians are printed")
	fs.DurationVar(&s.duration, "duration", 5*time.Second, "how long a measurement lasts, after a second of warming up")
	fs.IntVar(&s.idle, "idle", 10000, "connections of the row idle")
	fs.IntVar(&s.crowd, "crowd", 10000, "members of the row crowd")
	fs.IntVar(&s.catchup, "catchup", 1000000, "messages of the row catchup")
	fs.IntVar(&s.fan, "fan", 500, "subscribers of the rows fan1, fan0 and stall")
	fs.BoolVar(&s.checkSeq, "check-prev", true, "check that prev is unbroken in Mynah's QoS 1 deliveries")
	fs.StringVar(&s.jsonOut, "json", "", "file for the results as JSON")
	fs.StringVar(&s.mdOut, "markdown", "", "file for the results as Markdown, besides the terminal")
	fs.StringVar(&s.profiles, "profiles", "", "folder for profiles of Mynah's broker: of its processor time in each measured window, of its heap at the end")
	quick := fs.Bool("quick", false, "small and short, to see that everything works: one round of a second, 500 connections, 20,000 messages")
	brokerArgs := fs.String("broker-args", "", "further flags for mynah broker, separated by blanks")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("what is %q? Everything is said with flags, see -h", fs.Arg(0))
	}
	s.args = strings.Fields(*brokerArgs)
	s.targets = strings.Split(*targets, ",")
	for _, t := range s.targets {
		if t != mynah && t != mosquitto {
			return nil, fmt.Errorf("--targets: %q is neither %s nor %s", t, mynah, mosquitto)
		}
	}
	s.rows = rowKeys()
	if *rows != "" {
		s.rows = strings.Split(*rows, ",")
	}
	for _, r := range s.rows {
		if !slices.Contains(rowKeys(), r) {
			return nil, fmt.Errorf("--rows: there is no row %q; there are %s", r, strings.Join(rowKeys(), ", "))
		}
	}
	if *quick {
		s.rounds, s.duration, s.idle, s.crowd, s.catchup, s.fan = 1, time.Second, 500, 500, 20000, 100
	}
	if s.rounds < 1 || s.duration < time.Second {
		return nil, errors.New("--rounds must be at least 1 and --duration at least 1s")
	}
	return &s, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	s, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if slices.Contains(s.targets, mynah) {
		if s.bin, err = filepath.Abs(s.bin); err != nil {
			return err
		}
		if _, err := os.Stat(s.bin); err != nil {
			return fmt.Errorf("--bin: %w; build it with `make build`", err)
		}
	}
	// The generator allocates next to nothing while it measures.
	debug.SetGCPercent(400)
	b, err := newBench(ctx, s, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	rep := &report{Machine: testbed.ThisMachine(), Command: "go run ./bench/cmd/bench " + strings.Join(args, " ")}
	rep.Postgres = b.pg.Version()
	if rep.Fsync50, rep.Fsync99, err = testbed.MeasureFdatasync(b.dir, 500); err != nil {
		return err
	}
	var failed error
	for _, key := range s.rows {
		row := findRow(key)
		res := &result{row: row, Key: key, Title: row.title(s), Unit: row.unit, Goal: row.goal, Samples: map[string][]sample{}}
		for round := range s.rounds {
			for _, target := range row.targetsOf(s) {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				samples, err := b.measure(ctx, row, target)
				if err != nil {
					// The other rows are still worth having.
					err = fmt.Errorf("%s, %s, round %d: %w", key, target, round+1, err)
					fmt.Fprintln(stderr, "FAILED", err)
					failed = errors.Join(failed, err)
					res.Failures = append(res.Failures, err.Error())
					continue
				}
				for name, sm := range samples {
					fmt.Fprintf(stderr, "%-14s %-10s round %d: %s %s%s\n", key, name, round+1, formatNumber(sm.Value), row.unit, sm.extras())
					res.Samples[name] = append(res.Samples[name], sm)
				}
			}
		}
		rep.Results = append(rep.Results, res)
	}
	md := rep.markdown()
	if _, err := io.WriteString(stdout, md); err != nil {
		return err
	}
	if s.mdOut != "" {
		if err := os.WriteFile(s.mdOut, []byte(md), 0o600); err != nil {
			return err
		}
	}
	if s.jsonOut != "" {
		j, err := json.MarshalIndent(rep, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.jsonOut, append(j, '\n'), 0o600); err != nil {
			return err
		}
	}
	return failed
}
