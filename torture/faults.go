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

// fault is one kind of fault. inject makes it once, and returns what it did,
// for the log.
type fault struct {
	name     string
	perRound int // in each round of the deck
	role     *managedServer
	inject   func(rnd *rand.Rand) string
}

// faultDeck returns all faults that are possible on this machine, like a deck
// of cards to be shuffled.
func (h *harness) faultDeck(ctx context.Context, p *clients) []*fault {
	kill := func(r *managedServer) func(*rand.Rand) string {
		return func(rnd *rand.Rand) string {
			dead := randomDuration(rnd, 0, 1500*time.Millisecond)
			r.kill(dead, func() error { return r.proc.Kill() })
			h.counts.kills.Add(1)
			return fmt.Sprintf("killed %s, dead for %s", r.name, dead.Round(time.Millisecond))
		}
	}
	freeze := func(r *managedServer) func(*rand.Rand) string {
		return func(rnd *rand.Rand) string {
			d := randomDuration(rnd, 200*time.Millisecond, 3*time.Second)
			r.freeze(d)
			h.counts.stops.Add(1)
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
			late, d := randomDuration(rnd, 5*time.Millisecond, 300*time.Millisecond), randomDuration(rnd, 500*time.Millisecond, 3*time.Second)
			for _, l := range links {
				l.Delay(late)
			}
			time.Sleep(d)
			for _, l := range links {
				l.Delay(0)
			}
			h.counts.delays.Add(1)
			return fmt.Sprintf("delayed by %s for %s, %s", late.Round(time.Millisecond), d.Round(time.Millisecond), links[0].Name)
		}
	}
	stall := func(l *proxy.Link) func(*rand.Rand) string {
		return func(rnd *rand.Rand) string {
			d := randomDuration(rnd, 300*time.Millisecond, 4*time.Second)
			release := l.Stall()
			time.Sleep(d)
			release()
			h.counts.stalls.Add(1)
			return fmt.Sprintf("stalled for %s, %s", d.Round(time.Millisecond), l.Name)
		}
	}
	all := []*fault{
		{"kill broker", 4, h.broker, kill(h.broker)},
		{"kill archiver", 3, h.archiver, kill(h.archiver)},
		{"kill PostgreSQL", 2, h.postgres, kill(h.postgres)},
		{"PostgreSQL in immediate mode", 2, h.postgres, func(rnd *rand.Rand) string {
			dead := randomDuration(rnd, 0, 1500*time.Millisecond)
			h.postgres.kill(dead, h.pg.StopImmediately)
			h.counts.immediate.Add(1)
			return fmt.Sprintf("stopped PostgreSQL in immediate mode, dead for %s", dead.Round(time.Millisecond))
		}},
		{"stop broker", 3, h.broker, freeze(h.broker)},
		{"stop archiver", 2, h.archiver, freeze(h.archiver)},
		{"stop PostgreSQL", 2, h.postgres, freeze(h.postgres)},
		{"cut clients", 6, nil, cut(0.4, h.clientLink, h.clientWSLink)},
		{"cut archiver from broker", 2, nil, cut(1, h.archiverBrokerLink)},
		{"cut archiver from PostgreSQL", 2, nil, cut(1, h.archiverDBLink)},
		{"delay clients", 2, nil, delay(h.clientLink, h.clientWSLink)},
		{"delay archiver", 1, nil, delay(h.archiverBrokerLink, h.archiverDBLink)},
		{"stall clients", 2, nil, stall(h.clientLink)},
		{"stall archiver", 1, nil, stall(h.archiverBrokerLink)},
		{"stall PostgreSQL", 1, nil, stall(h.archiverDBLink)},
	}
	if h.mounted {
		all = append(all, &fault{"full disk", 1, nil, func(rnd *rand.Rand) string { return fillDisk(h, rnd) }})
	}
	if h.target == mynah {
		all = append(all, &fault{"log tail", 2, nil, func(rnd *rand.Rand) string { return damageTail(ctx, h, p, rnd) }})
	}
	return all
}

// exclusive faults wait for all others to end.
func (f *fault) exclusive() bool { return f.name == "log tail" }

// injectFaults injects faults until ctx ends, and returns when the last has ended.
// Each round has every fault perRound times, in a random order from the seed. At
// most three faults are active at a time.
func (h *harness) injectFaults(ctx context.Context, p *clients) {
	rnd := rand.New(rand.NewPCG(h.seed, 1)) //nolint:gosec // repeatable by design
	var deck []*fault
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, 3)
	progress := time.Now()
	for {
		if len(deck) == 0 {
			for _, f := range h.faultDeck(ctx, p) {
				for range f.perRound {
					if strings.Contains(f.name, h.only) {
						deck = append(deck, f)
					}
				}
			}
			if len(deck) == 0 {
				h.logLine("no fault's name holds %q", h.only)
				return
			}
			rnd.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		f := deck[0]
		deck = deck[1:]
		own := rand.New(rand.NewPCG(rnd.Uint64(), 2)) //nolint:gosec // as above
		pause := randomDuration(rnd, 200*time.Millisecond, 1200*time.Millisecond)
		select {
		case <-ctx.Done():
			return
		case slots <- struct{}{}:
		}
		running.Go(func() {
			defer func() { <-slots }()
			if f.exclusive() {
				h.logLine("%s", f.inject(own))
				return
			}
			h.exclusive.RLock()
			defer h.exclusive.RUnlock()
			if f.role != nil {
				f.role.mu.Lock()
				defer f.role.mu.Unlock()
			}
			h.logLine("%s", f.inject(own))
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
			sent, acked, received := h.ledger.Totals()
			h.logLine("so far %d sent, %d acknowledged, %d deliveries", sent, acked, received)
		}
	}
}

// faultsNotMade returns the kinds of fault that should have happened and did not.
// It returns none for a run that is too short for all of them.
func (h *harness) faultsNotMade() []string {
	var none []string
	if !h.faults || h.noDisk || h.only != "" {
		return nil
	}
	if !h.mounted {
		none = append(none, "full disk: run as root, or say --no-disk-fault")
	}
	return none
}
