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
	"mynah/bench/testbed"
	"mynah/internal/mqttwire"
)

// The servers that are measured.
const (
	mynah     = "mynah"
	mosquitto = "mosquitto"
	rawTCP    = "raw TCP"
	viaCopy   = "COPY"
)

// bench is the state that all measurements share.
type bench struct {
	*settings
	dir         string
	stderr      io.Writer
	pg          *testbed.Postgres
	targetCount int
}

func newBench(ctx context.Context, s *settings, stderr io.Writer) (*bench, error) {
	dir, err := os.MkdirTemp(s.dir, "mynah-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{settings: s, dir: dir, stderr: stderr}
	// PostgreSQL runs as another user and must be able to enter the folder.
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // see above
		return nil, err
	}
	if b.pg, err = testbed.NewPostgres(filepath.Join(dir, "pg"), dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := b.pg.Start(30 * time.Second); err != nil {
		return nil, errors.Join(err, b.close())
	}
	// Ctrl-C also stops the servers during a measurement.
	context.AfterFunc(ctx, func() { _ = b.pg.Kill() })
	return b, nil
}

func (b *bench) close() error {
	return errors.Join(b.pg.Stop(), os.RemoveAll(b.dir))
}

// measure starts the target with empty data, measures the row once and stops
// the target. It returns one sample for each server that the row compares in
// this measurement.
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
	if err := t.saveProfile(ctx, "heap", 0); err != nil {
		return nil, err
	}
	samples := map[string]sample{name: s}
	if t.copyRate > 0 {
		samples[viaCopy] = sample{Value: t.copyRate}
	}
	return samples, nil
}

// target is one server, started for one measurement, and the generator's loop.
type target struct {
	*bench
	*load.Loop
	name        string
	dir         string
	mqttPort    int
	metricsPort int
	secret      string
	broker      *testbed.Proc
	archiver    *testbed.Proc
	db          string  // name of its database, "" for none
	copyRate    float64 // rows/s of a plain COPY, if the row measured it
}

func (b *bench) start(ctx context.Context, name string, r *row) (_ *target, err error) {
	b.targetCount++
	t := &target{bench: b, name: name, dir: filepath.Join(b.dir, fmt.Sprintf("%03d-%s", b.targetCount, r.key)), secret: testbed.NewSecret()}
	if err := os.Mkdir(t.dir, 0o750); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.stop())
		}
	}()
	if t.mqttPort, err = testbed.FreePort(); err != nil {
		return nil, err
	}
	switch name {
	case mosquitto:
		t.broker, err = testbed.Mosquitto(&testbed.MosquittoSpec{Dir: t.dir, Port: t.mqttPort})
		return t, err
	case rawTCP:
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		if t.broker, err = testbed.Start(&testbed.ProcSpec{Name: "rawfan", Dir: t.dir, Args: []string{self, "rawfan", fmt.Sprint(t.mqttPort)}}); err != nil {
			return nil, err
		}
		return t, t.broker.WaitPort(fmt.Sprintf("127.0.0.1:%d", t.mqttPort), 10*time.Second)
	}
	return t, t.startMynah(ctx, r.archiver)
}

func (t *target) startMynah(ctx context.Context, withArchiver bool) error {
	httpPort, err := testbed.FreePort()
	if err != nil {
		return err
	}
	if t.metricsPort, err = testbed.FreePort(); err != nil {
		return err
	}
	data := filepath.Join(t.dir, "data")
	if t.broker, err = testbed.MynahBroker(&testbed.MynahSpec{
		Bin: t.bin, Logs: t.dir, DataDir: data, Secret: t.secret, MQTT: t.mqttPort, HTTP: httpPort, Metrics: t.metricsPort, Args: t.args,
	}); err != nil {
		return err
	}
	if err := testbed.WaitReady(t.broker, httpPort, 20*time.Second); err != nil {
		return err
	}
	t.db = fmt.Sprintf("bench_%03d", t.targetCount)
	if err := t.pg.CreateDatabase(ctx, t.db); err != nil {
		return err
	}
	if err := testbed.MynahMigrate(t.bin, t.dir, t.pg.URL(t.db)); err != nil {
		return err
	}
	if !withArchiver {
		return nil
	}
	return t.startArchiver()
}

func (t *target) startArchiver() error {
	metrics, err := testbed.FreePort()
	if err != nil {
		return err
	}
	t.archiver, err = testbed.StartMynahArchiver(&testbed.ArchiverSpec{
		Bin: t.bin, Logs: t.dir, Secret: t.secret, Broker: t.mqttPort, Database: t.pg.URL(t.db), Metrics: metrics,
	})
	return err
}

func (t *target) kill() {
	for _, p := range []*testbed.Proc{t.archiver, t.broker} {
		if p != nil {
			_ = p.Kill()
		}
	}
}

func (t *target) stop() error {
	var errs []error
	for _, p := range []*testbed.Proc{t.archiver, t.broker} {
		if p == nil {
			continue
		}
		if t.name == rawTCP {
			errs = append(errs, p.Kill())
			continue
		}
		errs = append(errs, p.Stop(30*time.Second))
	}
	return errors.Join(append(errs, os.RemoveAll(t.dir))...)
}

// dialSpec returns how a user with one device connects.
func (t *target) dialSpec(subject string, clean bool, groups []string, filters ...mqttwire.Filter) (*load.DialSpec, error) {
	d := &load.DialSpec{Port: t.mqttPort, Connect: mqttwire.Connect{ClientID: subject, Clean: clean, Username: subject}, Filters: filters}
	if t.name == mynah {
		token, err := testbed.Token(t.secret, subject, "", groups...)
		if err != nil {
			return nil, err
		}
		d.Connect.Password = token
	}
	return d, nil
}

func (t *target) subscriber(subject string, clean, checkPrev bool, groups []string, filters ...mqttwire.Filter) (*load.Subscriber, error) {
	d, err := t.dialSpec(subject, clean, groups, filters...)
	if err != nil {
		return nil, err
	}
	return t.DialSubscriber(d, payloadSize, checkPrev && t.checkSeq && t.name == mynah)
}

func (t *target) publisher(number int, groups []string, p *load.PublishSpec) (*load.Publisher, error) {
	d, err := t.dialSpec(fmt.Sprintf("p%03d", number), true, groups)
	if err != nil {
		return nil, err
	}
	p.Size = payloadSize
	p.Wrapped = t.name == rawTCP
	return t.DialPublisher(d, number, p)
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
