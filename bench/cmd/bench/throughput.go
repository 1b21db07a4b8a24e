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
	warmUpTime     = time.Second
	inFlight       = 64
)

// connectPairs connects n publishers to n subscribers, each pair on a topic of its own.
func (t *target) connectPairs(n, window int) ([]*load.Publisher, []*load.Subscriber, error) {
	var pubs []*load.Publisher
	var subs []*load.Subscriber
	for i := range n {
		id := fmt.Sprintf("s%03d", i)
		s, err := t.subscriber(id, true, true, nil, mqttwire.Filter{Topic: "user/" + id, QoS: 1})
		if err != nil {
			return nil, nil, err
		}
		p, err := t.publisher(i, nil, &load.PublishSpec{Topics: []string{"user/" + id}, QoS: 1, Window: window})
		if err != nil {
			return nil, nil, err
		}
		pubs, subs = append(pubs, p), append(subs, s)
	}
	return pubs, subs, t.RunUntil(t.Ready, connectTimeout, "connect")
}

// connectGroup connects n subscribers to one group and a publisher to it.
func (t *target) connectGroup(n int, qos byte) (*load.Publisher, []*load.Subscriber, error) {
	const id = "bench"
	var subs []*load.Subscriber
	for i := range n {
		s, err := t.subscriber(fmt.Sprintf("m%05d", i), true, qos > 0, []string{id}, mqttwire.Filter{Topic: "group/" + id, QoS: qos})
		if err != nil {
			return nil, nil, err
		}
		subs = append(subs, s)
		if i%500 == 499 {
			// Connects in steps that are no larger than a listener's backlog.
			if err := t.RunUntil(t.Ready, connectTimeout, "connect"); err != nil {
				return nil, nil, err
			}
		}
	}
	p, err := t.publisher(0, []string{id}, &load.PublishSpec{Topics: []string{"group/" + id}, QoS: qos, Window: inFlight})
	if err != nil {
		return nil, nil, err
	}
	return p, subs, t.RunUntil(t.Ready, connectTimeout, "connect")
}

// measureDeliveries measures deliveries for the configured duration after a warm-up.
func (t *target) measureDeliveries(ctx context.Context, subs []*load.Subscriber) (sample, error) {
	if err := t.RunFor(warmUpTime); err != nil {
		return sample{}, err
	}
	profiled := t.startCPUProfile(ctx, int(t.duration.Seconds()))
	cpu0, arch0 := t.cpu()
	seen0, began := totalDelivered(subs), time.Now()
	if err := t.RunFor(t.duration); err != nil {
		return sample{}, err
	}
	took := time.Since(began)
	n := float64(totalDelivered(subs) - seen0)
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

func totalDelivered(subs []*load.Subscriber) (n uint64) {
	for _, s := range subs {
		n += s.Seen
	}
	return n
}

// waitAllDelivered waits until every sent message is acknowledged and delivered, and
// checks the deliveries.
func (t *target) waitAllDelivered(pubs []*load.Publisher, subs []*load.Subscriber, want func(*load.Subscriber) uint64) error {
	if err := t.RunUntil(func() bool {
		for _, p := range pubs {
			if !p.AllAcknowledged() {
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
		return fmt.Errorf("%w: %d deliveries so far", err, totalDelivered(subs))
	}
	for _, p := range pubs {
		if p.OutOfOrder > 0 {
			return fmt.Errorf("publisher %d: %d acknowledgements out of order", p.Number, p.OutOfOrder)
		}
	}
	for _, s := range subs {
		if err := s.Check(false); err != nil {
			return err
		}
	}
	return nil
}

func measurePairs(ctx context.Context, t *target) (sample, error) {
	pubs, subs, err := t.connectPairs(10, inFlight)
	if err != nil {
		return sample{}, err
	}
	for _, p := range pubs {
		p.PublishAtFullSpeed()
	}
	s, err := t.measureDeliveries(ctx, subs)
	if err != nil {
		return s, err
	}
	var acked, behind uint64
	for _, p := range pubs {
		p.StopPublishing()
		acked += p.Acked
	}
	behind = acked - min(acked, totalDelivered(subs))
	s.add("not yet delivered at the end", float64(behind), "msg")
	sent := map[*load.Subscriber]uint64{}
	for i, sub := range subs {
		sent[sub] = pubs[i].Sent
	}
	return s, t.waitAllDelivered(pubs, subs, func(sub *load.Subscriber) uint64 { return sent[sub] })
}

func measureFanOutQoS1(ctx context.Context, t *target) (sample, error) {
	p, subs, err := t.connectGroup(t.fan, 1)
	if err != nil {
		return sample{}, err
	}
	p.PublishAtFullSpeed()
	s, err := t.measureDeliveries(ctx, subs)
	if err != nil {
		return s, err
	}
	p.StopPublishing()
	s.add("not yet delivered at the end", float64(p.Acked*uint64(len(subs))-min(p.Acked*uint64(len(subs)), totalDelivered(subs))), "deliveries")
	s.add("broker peak RSS", float64(t.broker.PeakRSS())/1024, "MiB")
	return s, t.waitAllDelivered([]*load.Publisher{p}, subs, func(*load.Subscriber) uint64 { return p.Sent })
}

func measureFanOutQoS0(ctx context.Context, t *target) (sample, error) {
	p, subs, err := t.connectGroup(t.fan, 0)
	if err != nil {
		return sample{}, err
	}
	p.PublishAtRate(5_000_000/float64(len(subs)), 0)
	began := time.Now()
	s, err := t.measureDeliveries(ctx, subs)
	if err != nil {
		return s, err
	}
	s.add("taken from the publisher", float64(p.Sent)*float64(len(subs))/time.Since(began).Seconds(), "deliveries/s")
	p.StopPublishing()
	var lost uint64
	for _, sub := range subs {
		lost += sub.Lost
		if err := sub.Check(true); err != nil {
			return s, err
		}
	}
	s.add("lost (QoS 0 allows it)", 100*float64(lost)/float64(max(1, lost+totalDelivered(subs))), "%")
	s.add("broker peak RSS", float64(t.broker.PeakRSS())/1024, "MiB")
	return s, nil
}
