package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"mynah/torture/proxy"
)

// fault is one thing that goes wrong. do returns what it did.
type fault struct {
	name  string
	times int // in each round of the deck
	role  *role
	do    func(rnd *rand.Rand) string
}

// deck returns all faults that are possible here.
func (w *world) deck(ctx context.Context, p *people) []*fault {
	kill := func(r *role) func(*rand.Rand) string {
		return func(rnd *rand.Rand) string {
			dead := between(rnd, 0, 1500*time.Millisecond)
			r.kill(dead, func() error { return r.proc.Kill() })
			w.count.kills.Add(1)
			return fmt.Sprintf("killed %s, dead for %s", r.name, dead.Round(time.Millisecond))
		}
	}
	freeze := func(r *role) func(*rand.Rand) string {
		return func(rnd *rand.Rand) string {
			d := between(rnd, 200*time.Millisecond, 3*time.Second)
			r.freeze(d)
			w.count.stops.Add(1)
			return fmt.Sprintf("stopped %s for %s", r.name, d.Round(time.Millisecond))
		}
	}
	cut := func(share float64, links ...*proxy.Link) func(*rand.Rand) string {
		return func(rnd *rand.Rand) string {
			n := 0
			for _, l := range links {
				n += l.Cut(rnd, share)
			}
			time.Sleep(500 * time.Millisecond)
			return fmt.Sprintf("cut %d connections, %s", n, links[0].Name)
		}
	}
	delay := func(links ...*proxy.Link) func(*rand.Rand) string {
		return func(rnd *rand.Rand) string {
			late, d := between(rnd, 5*time.Millisecond, 300*time.Millisecond), between(rnd, 500*time.Millisecond, 3*time.Second)
			for _, l := range links {
				l.Delay(late)
			}
			time.Sleep(d)
			for _, l := range links {
				l.Delay(0)
			}
			w.count.delays.Add(1)
			return fmt.Sprintf("delayed by %s for %s, %s", late.Round(time.Millisecond), d.Round(time.Millisecond), links[0].Name)
		}
	}
	stall := func(l *proxy.Link) func(*rand.Rand) string {
		return func(rnd *rand.Rand) string {
			d := between(rnd, 300*time.Millisecond, 4*time.Second)
			release := l.Stall()
			time.Sleep(d)
			release()
			w.count.stalls.Add(1)
			return fmt.Sprintf("stalled for %s, %s", d.Round(time.Millisecond), l.Name)
		}
	}
	all := []*fault{
		{"kill broker", 4, w.broker, kill(w.broker)},
		{"kill archiver", 3, w.archiver, kill(w.archiver)},
		{"kill PostgreSQL", 2, w.postgres, kill(w.postgres)},
		{"PostgreSQL in immediate mode", 2, w.postgres, func(rnd *rand.Rand) string {
			dead := between(rnd, 0, 1500*time.Millisecond)
			w.postgres.kill(dead, w.pg.StopImmediately)
			w.count.immediate.Add(1)
			return fmt.Sprintf("stopped PostgreSQL in immediate mode, dead for %s", dead.Round(time.Millisecond))
		}},
		{"stop broker", 3, w.broker, freeze(w.broker)},
		{"stop archiver", 2, w.archiver, freeze(w.archiver)},
		{"stop PostgreSQL", 2, w.postgres, freeze(w.postgres)},
		{"cut people", 6, nil, cut(0.4, w.people, w.peopleWS)},
		{"cut archiver from broker", 2, nil, cut(1, w.archiveIn)},
		{"cut archiver from PostgreSQL", 2, nil, cut(1, w.archiveOut)},
		{"delay people", 2, nil, delay(w.people, w.peopleWS)},
		{"delay archiver", 1, nil, delay(w.archiveIn, w.archiveOut)},
		{"stall people", 2, nil, stall(w.people)},
		{"stall archiver", 1, nil, stall(w.archiveIn)},
		{"stall PostgreSQL", 1, nil, stall(w.archiveOut)},
	}
	if w.mounted {
		all = append(all, &fault{"full disk", 1, nil, func(rnd *rand.Rand) string { return fillDisk(w, rnd) }})
	}
	if w.target == mynah {
		all = append(all, &fault{"log tail", 2, nil, func(rnd *rand.Rand) string { return damageTail(ctx, w, p, rnd) }})
	}
	return all
}

// exclusive faults wait for all others to end.
func (f *fault) exclusive() bool { return f.name == "log tail" }

// torment makes faults until ctx ends, and returns when they have ended. Each
// round of the deck has every fault, in an order drawn from the seed; up to three
// go on at once.
func (w *world) torment(ctx context.Context, p *people) {
	rnd := rand.New(rand.NewPCG(w.seed, 1)) //nolint:gosec // repeatable by design
	var deck []*fault
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, 3)
	progress := time.Now()
	for {
		if len(deck) == 0 {
			for _, f := range w.deck(ctx, p) {
				for range f.times {
					if strings.Contains(f.name, w.only) {
						deck = append(deck, f)
					}
				}
			}
			if len(deck) == 0 {
				w.say("no fault's name holds %q", w.only)
				return
			}
			rnd.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		f := deck[0]
		deck = deck[1:]
		own := rand.New(rand.NewPCG(rnd.Uint64(), 2)) //nolint:gosec // as above
		pause := between(rnd, 200*time.Millisecond, 1200*time.Millisecond)
		select {
		case <-ctx.Done():
			return
		case slots <- struct{}{}:
		}
		running.Go(func() {
			defer func() { <-slots }()
			if f.exclusive() {
				w.say("%s", f.do(own))
				return
			}
			w.quiet.RLock()
			defer w.quiet.RUnlock()
			if f.role != nil {
				f.role.mu.Lock()
				defer f.role.mu.Unlock()
			}
			w.say("%s", f.do(own))
		})
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if time.Since(progress) > 10*time.Second {
			progress = time.Now()
			sent, acked, received := w.ledger.Totals()
			w.say("so far %d sent, %d acknowledged, %d deliveries", sent, acked, received)
		}
	}
}

// uncovered returns the kinds of fault that were to be made and were not. A run
// that is too short for all of them is not blamed.
func (w *world) uncovered() []string {
	var none []string
	if !w.faults || w.noDisk || w.only != "" {
		return nil
	}
	if !w.mounted {
		none = append(none, "full disk: run as root, or say --no-disk-fault")
	}
	return none
}
