package main

import (
	"context"
	"fmt"
	"time"

	"mynah/bench/load"
	"mynah/internal/mqttwire"
)

const (
	connectTimeout = 60 * time.Second
	drainTimeout   = 120 * time.Second
	warmUp         = time.Second
	inFlight       = 64
)

// pairs connects n publishers to n subscribers, each pair on a topic of its own.
func (t *target) pairs(n, window int) ([]*load.Publisher, []*load.Subscriber, error) {
	var pubs []*load.Publisher
	var subs []*load.Subscriber
	for i := range n {
		id := fmt.Sprintf("s%03d", i)
		s, err := t.subscriber(id, true, true, nil, mqttwire.Filter{Topic: "user/" + id, QoS: 1})
		if err != nil {
			return nil, nil, err
		}
		p, err := t.publisher(i, nil, &load.Publishing{Topics: []string{"user/" + id}, QoS: 1, Window: window})
		if err != nil {
			return nil, nil, err
		}
		pubs, subs = append(pubs, p), append(subs, s)
	}
	return pubs, subs, t.RunUntil(t.Ready, connectTimeout, "connect")
}

// group connects n subscribers to one group and a publisher to it.
func (t *target) group(n int, qos byte) (*load.Publisher, []*load.Subscriber, error) {
	const id = "bench"
	var subs []*load.Subscriber
	for i := range n {
		s, err := t.subscriber(fmt.Sprintf("m%05d", i), true, qos > 0, []string{id}, mqttwire.Filter{Topic: "group/" + id, QoS: qos})
		if err != nil {
			return nil, nil, err
		}
		subs = append(subs, s)
		if i%500 == 499 {
			// Not more connections at once than a listener's backlog holds.
			if err := t.RunUntil(t.Ready, connectTimeout, "connect"); err != nil {
				return nil, nil, err
			}
		}
	}
	p, err := t.publisher(0, []string{id}, &load.Publishing{Topics: []string{"group/" + id}, QoS: qos, Window: inFlight})
	if err != nil {
		return nil, nil, err
	}
	return p, subs, t.RunUntil(t.Ready, connectTimeout, "connect")
}

// window measures deliveries for the configured duration after a warm-up.
func (t *target) window(ctx context.Context, subs []*load.Subscriber) (sample, error) {
	if err := t.RunFor(warmUp); err != nil {
		return sample{}, err
	}
	profiled := t.profiling(ctx, int(t.duration.Seconds()))
	cpu0, arch0 := t.cpu()
	seen0, began := total(subs), time.Now()
	if err := t.RunFor(t.duration); err != nil {
		return sample{}, err
	}
	took := time.Since(began)
	n := float64(total(subs) - seen0)
	cpu1, arch1 := t.cpu()
	s := sample{Value: n / took.Seconds()}
	if n > 0 {
		s.add("broker CPU", float64((cpu1-cpu0).Nanoseconds())/1000/n, "µs/delivery")
		if t.archiver != nil {
			s.add("archiver CPU", float64((arch1-arch0).Nanoseconds())/1000/n, "µs/delivery")
		}
	}
	s.add("broker cores", (cpu1-cpu0).Seconds()/took.Seconds(), "")
	return s, profiled()
}

func total(subs []*load.Subscriber) (n uint64) {
	for _, s := range subs {
		n += s.Seen
	}
	return n
}

// settle waits until everything that was sent is acknowledged and delivered, and
// checks it.
func (t *target) settle(pubs []*load.Publisher, subs []*load.Subscriber, want func(*load.Subscriber) uint64) error {
	if err := t.RunUntil(func() bool {
		for _, p := range pubs {
			if !p.Settled() {
				return false
			}
		}
		for _, s := range subs {
			if s.Seen+s.Lost < want(s) {
				return false
			}
		}
		return true
	}, drainTimeout, "drain"); err != nil {
		return fmt.Errorf("%w: %d deliveries so far", err, total(subs))
	}
	for _, p := range pubs {
		if p.Disordered > 0 {
			return fmt.Errorf("publisher %d: %d acknowledgements out of order", p.Number, p.Disordered)
		}
	}
	for _, s := range subs {
		if err := s.Check(false); err != nil {
			return err
		}
	}
	return nil
}

func flow(ctx context.Context, t *target) (sample, error) {
	pubs, subs, err := t.pairs(10, inFlight)
	if err != nil {
		return sample{}, err
	}
	for _, p := range pubs {
		p.Flow()
	}
	s, err := t.window(ctx, subs)
	if err != nil {
		return s, err
	}
	var acked, behind uint64
	for _, p := range pubs {
		p.Hold()
		acked += p.Acked
	}
	behind = acked - min(acked, total(subs))
	s.add("not yet delivered at the end", float64(behind), "msg")
	sent := map[*load.Subscriber]uint64{}
	for i, sub := range subs {
		sent[sub] = pubs[i].Sent
	}
	return s, t.settle(pubs, subs, func(sub *load.Subscriber) uint64 { return sent[sub] })
}

func fanAcknowledged(ctx context.Context, t *target) (sample, error) {
	p, subs, err := t.group(t.fan, 1)
	if err != nil {
		return sample{}, err
	}
	p.Flow()
	s, err := t.window(ctx, subs)
	if err != nil {
		return s, err
	}
	p.Hold()
	s.add("not yet delivered at the end", float64(p.Acked*uint64(len(subs))-min(p.Acked*uint64(len(subs)), total(subs))), "deliveries")
	s.add("broker peak RSS", float64(t.broker.PeakRSS())/1024, "MiB")
	return s, t.settle([]*load.Publisher{p}, subs, func(*load.Subscriber) uint64 { return p.Sent })
}

func fanOffered(ctx context.Context, t *target) (sample, error) {
	p, subs, err := t.group(t.fan, 0)
	if err != nil {
		return sample{}, err
	}
	p.Pace(5_000_000/float64(len(subs)), 0)
	began := time.Now()
	s, err := t.window(ctx, subs)
	if err != nil {
		return s, err
	}
	s.add("taken from the publisher", float64(p.Sent)*float64(len(subs))/time.Since(began).Seconds(), "deliveries/s")
	p.Hold()
	var lost uint64
	for _, sub := range subs {
		lost += sub.Lost
		if err := sub.Check(true); err != nil {
			return s, err
		}
	}
	s.add("lost (QoS 0 allows it)", 100*float64(lost)/float64(max(1, lost+total(subs))), "%")
	s.add("broker peak RSS", float64(t.broker.PeakRSS())/1024, "MiB")
	return s, nil
}
