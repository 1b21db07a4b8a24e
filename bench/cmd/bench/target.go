package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"mynah/bench/load"
	"mynah/bench/stand"
	"mynah/internal/mqttwire"
)

// The servers that are measured.
const (
	mynah     = "mynah"
	mosquitto = "mosquitto"
	raw       = "raw TCP"
	copyIn    = "COPY"
)

// bench holds what all measurements share.
type bench struct {
	*settings
	dir    string
	stderr io.Writer
	pg     *stand.Postgres
	count  int
}

func newBench(ctx context.Context, s *settings, stderr io.Writer) (*bench, error) {
	dir, err := os.MkdirTemp(s.dir, "mynah-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{settings: s, dir: dir, stderr: stderr}
	// PostgreSQL runs as another user and must be able to pass.
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // see above
		return nil, err
	}
	if b.pg, err = stand.NewPostgres(filepath.Join(dir, "pg"), dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := b.pg.Start(30 * time.Second); err != nil {
		return nil, errors.Join(err, b.close())
	}
	// A Ctrl-C ends the servers even in the middle of a measurement.
	context.AfterFunc(ctx, func() { _ = b.pg.Kill() })
	return b, nil
}

func (b *bench) close() error {
	return errors.Join(b.pg.Stop(), os.RemoveAll(b.dir))
}

// measure starts the target afresh, measures the row once and stops the target.
// It returns a sample for each server that the row compares in one go.
func (b *bench) measure(ctx context.Context, r *row, name string) (_ map[string]sample, err error) {
	t, err := b.start(ctx, name, r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	stop := context.AfterFunc(ctx, t.kill)
	defer stop()
	l, err := load.NewLoop()
	if err != nil {
		return nil, err
	}
	defer l.Close()
	t.Loop = l
	s, err := r.run(ctx, t)
	if err != nil {
		return nil, err
	}
	if err := t.profile(ctx, "heap", 0); err != nil {
		return nil, err
	}
	samples := map[string]sample{name: s}
	if t.copied > 0 {
		samples[copyIn] = sample{Value: t.copied}
	}
	return samples, nil
}

// target is one server, started for one measurement, and the generator's loop.
type target struct {
	*bench
	*load.Loop
	name     string
	dir      string
	port     int
	metrics  int
	secret   string
	broker   *stand.Proc
	archiver *stand.Proc
	db       string  // name of its database, "" for none
	copied   float64 // rows/s of a plain COPY, if the row measured it
}

func (b *bench) start(ctx context.Context, name string, r *row) (_ *target, err error) {
	b.count++
	t := &target{bench: b, name: name, dir: filepath.Join(b.dir, fmt.Sprintf("%03d-%s", b.count, r.key)), secret: stand.NewSecret()}
	if err := os.Mkdir(t.dir, 0o750); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.stop())
		}
	}()
	if t.port, err = stand.FreePort(); err != nil {
		return nil, err
	}
	switch name {
	case mosquitto:
		t.broker, err = stand.Mosquitto(&stand.MosquittoSpec{Dir: t.dir, Port: t.port})
		return t, err
	case raw:
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		if t.broker, err = stand.Start(&stand.Spec{Name: "rawfan", Dir: t.dir, Args: []string{self, "rawfan", fmt.Sprint(t.port)}}); err != nil {
			return nil, err
		}
		return t, t.broker.WaitPort(fmt.Sprintf("127.0.0.1:%d", t.port), 10*time.Second)
	}
	return t, t.startMynah(ctx, r.archiver)
}

func (t *target) startMynah(ctx context.Context, withArchiver bool) error {
	httpPort, err := stand.FreePort()
	if err != nil {
		return err
	}
	if t.metrics, err = stand.FreePort(); err != nil {
		return err
	}
	data := filepath.Join(t.dir, "data")
	if t.broker, err = stand.MynahBroker(&stand.MynahSpec{
		Bin: t.bin, Logs: t.dir, DataDir: data, Secret: t.secret, MQTT: t.port, HTTP: httpPort, Metrics: t.metrics, Args: t.args,
	}); err != nil {
		return err
	}
	if err := stand.WaitReady(t.broker, httpPort, 20*time.Second); err != nil {
		return err
	}
	t.db = fmt.Sprintf("bench_%03d", t.count)
	if err := t.pg.CreateDatabase(ctx, t.db); err != nil {
		return err
	}
	if err := stand.MynahMigrate(t.bin, t.dir, t.pg.URL(t.db)); err != nil {
		return err
	}
	if !withArchiver {
		return nil
	}
	return t.startArchiver()
}

func (t *target) startArchiver() error {
	metrics, err := stand.FreePort()
	if err != nil {
		return err
	}
	t.archiver, err = stand.StartMynahArchiver(&stand.ArchiverSpec{
		Bin: t.bin, Logs: t.dir, Secret: t.secret, Broker: t.port, Database: t.pg.URL(t.db), Metrics: metrics,
	})
	return err
}

func (t *target) kill() {
	for _, p := range []*stand.Proc{t.archiver, t.broker} {
		if p != nil {
			_ = p.Kill()
		}
	}
}

func (t *target) stop() error {
	var errs []error
	for _, p := range []*stand.Proc{t.archiver, t.broker} {
		if p == nil {
			continue
		}
		if t.name == raw {
			errs = append(errs, p.Kill())
			continue
		}
		errs = append(errs, p.Stop(30*time.Second))
	}
	return errors.Join(append(errs, os.RemoveAll(t.dir))...)
}

// dial prepares a connection of a user with one device.
func (t *target) dial(subject string, clean bool, groups []string, filters ...mqttwire.Filter) (*load.Dial, error) {
	d := &load.Dial{Port: t.port, Connect: mqttwire.Connect{ClientID: subject, Clean: clean, Username: subject}, Filters: filters}
	if t.name == mynah {
		token, err := stand.Token(t.secret, subject, "", groups...)
		if err != nil {
			return nil, err
		}
		d.Connect.Password = token
	}
	return d, nil
}

func (t *target) subscriber(subject string, clean, checkPrev bool, groups []string, filters ...mqttwire.Filter) (*load.Subscriber, error) {
	d, err := t.dial(subject, clean, groups, filters...)
	if err != nil {
		return nil, err
	}
	return t.Subscribe(d, payloadSize, checkPrev && t.checkSeq && t.name == mynah)
}

func (t *target) publisher(number int, groups []string, p *load.Publishing) (*load.Publisher, error) {
	d, err := t.dial(fmt.Sprintf("p%03d", number), true, groups)
	if err != nil {
		return nil, err
	}
	p.Size = payloadSize
	p.Wrapped = t.name == raw
	return t.Publish(d, number, p)
}

// payloadSize is the size of a published payload in bytes.
const payloadSize = 128

// cpu returns the processor time that the target's processes have used.
func (t *target) cpu() (broker, archiver time.Duration) {
	broker = t.broker.CPU()
	if t.archiver != nil {
		archiver = t.archiver.CPU()
	}
	return broker, archiver
}
