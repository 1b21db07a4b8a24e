package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"mynah/bench/load"
	"mynah/bench/testbed"
	"mynah/internal/mqttwire"
)

func measureLatency(ctx context.Context, t *target) (sample, error) {
	const rate = 1000.0
	pubs, subs, err := t.connectPairs(10, inFlight)
	if err != nil {
		return sample{}, err
	}
	p50, p99, err := testbed.MeasureFdatasync(t.dir, 200)
	if err != nil {
		return sample{}, err
	}
	for i, p := range pubs {
		p.PublishAtRate(rate/float64(len(pubs)), time.Duration(i)*time.Millisecond)
	}
	if err := t.RunFor(warmUpTime); err != nil {
		return sample{}, err
	}
	profiled := t.startCPUProfile(ctx, int(t.duration.Seconds()))
	cpu0, _ := t.cpu()
	for _, s := range subs {
		s.Latencies = make([]int64, 0, int(rate*t.duration.Seconds()))
	}
	if err := t.RunFor(t.duration); err != nil {
		return sample{}, err
	}
	cpu1, _ := t.cpu()
	if err := profiled(); err != nil {
		return sample{}, err
	}
	all := latencies(subs)
	s := sample{Value: percentile(all, 99)}
	s.add("p50", percentile(all, 50), "ms")
	s.add("max", percentile(all, 100), "ms")
	s.add("fdatasync p50", float64(p50.Microseconds())/1000, "ms")
	s.add("fdatasync p99", float64(p99.Microseconds())/1000, "ms")
	s.add("broker CPU", float64((cpu1-cpu0).Nanoseconds())/1000/float64(max(1, len(all))), "µs/message")
	sent := map[*load.Subscriber]uint64{}
	for i, p := range pubs {
		p.StopPublishing()
		sent[subs[i]] = p.Sent
	}
	return s, t.waitAllDelivered(pubs, subs, func(sub *load.Subscriber) uint64 { return sent[sub] })
}

func latencies(subs []*load.Subscriber) []int64 {
	var all []int64
	for _, s := range subs {
		all = append(all, s.Latencies...)
		s.Latencies = nil
	}
	return all
}

// measureStall measures the effect of one subscriber that stops reading. The
// latency of the others must not grow, nor must the broker's memory. The
// subscriber must get every message when it reads again.
func measureStall(_ context.Context, t *target) (sample, error) {
	const rate = 50.0
	p, subs, err := t.connectGroup(t.fan-1, 1)
	if err != nil {
		return sample{}, err
	}
	d, err := t.dialSpec("stalled", true, []string{"bench"}, mqttwire.Filter{Topic: "group/bench", QoS: 1})
	if err != nil {
		return sample{}, err
	}
	d.RecvBuffer = 4096
	lazy, err := t.DialSubscriber(d, payloadSize, t.checkSeq && t.name == mynah)
	if err != nil {
		return sample{}, err
	}
	if err := t.RunUntil(t.Ready, connectTimeout, "connect"); err != nil {
		return sample{}, err
	}
	p.PublishAtRate(rate, 0)
	if err := t.RunFor(warmUpTime); err != nil {
		return sample{}, err
	}
	phase := func(d time.Duration) ([]int64, error) {
		for _, s := range subs {
			s.Latencies = make([]int64, 0, int(2*rate*d.Seconds())+10)
		}
		err := t.RunFor(d)
		return latencies(subs), err
	}
	before, err := phase(t.duration)
	if err != nil {
		return sample{}, err
	}
	rss0 := t.broker.RSS()
	if err := t.StopReading(lazy); err != nil {
		return sample{}, err
	}
	if err := t.RunFor(warmUpTime); err != nil {
		return sample{}, err
	}
	during, err := phase(2 * t.duration)
	if err != nil {
		return sample{}, err
	}
	rss1 := t.broker.RSS()
	p.StopPublishing()
	missed := p.Sent - lazy.Seen
	if err := t.ResumeReading(lazy); err != nil {
		return sample{}, err
	}
	was, is := percentile(before, 99), percentile(during, 99)
	s := sample{Value: is / was}
	s.add("p99 before", was, "ms")
	s.add("p99 during", is, "ms")
	s.add("p50 before", percentile(before, 50), "ms")
	s.add("p50 during", percentile(during, 50), "ms")
	s.add("RSS before", float64(rss0)/1024, "MiB")
	s.add("RSS during", float64(rss1)/1024, "MiB")
	s.add("missed by the stalled one until it read again", float64(missed), "msg")
	return s, t.waitAllDelivered([]*load.Publisher{p}, append(subs, lazy), func(*load.Subscriber) uint64 { return p.Sent })
}

func measureIdle(_ context.Context, t *target) (sample, error) {
	if err := enoughDescriptors(t.idle); err != nil {
		return sample{}, err
	}
	if err := t.RunFor(2 * time.Second); err != nil {
		return sample{}, err
	}
	before := t.broker.RSS()
	for i := range t.idle {
		id := fmt.Sprintf("i%05d", i)
		d, err := t.dialSpec(id, true, nil, mqttwire.Filter{Topic: "user/" + id, QoS: 1})
		if err != nil {
			return sample{}, err
		}
		if err := t.DialIdle(d); err != nil {
			return sample{}, err
		}
		if i%100 == 99 {
			if err := t.RunUntil(t.Ready, connectTimeout, "connect"); err != nil {
				return sample{}, err
			}
		}
	}
	if err := t.RunUntil(t.Ready, connectTimeout, "connect"); err != nil {
		return sample{}, err
	}
	at := t.broker.RSS()
	if err := t.RunFor(5 * time.Second); err != nil {
		return sample{}, err
	}
	after := t.broker.RSS()
	s := sample{Value: float64(after-before) / float64(t.idle)}
	s.add("RSS before", float64(before)/1024, "MiB")
	s.add("RSS when connected", float64(at)/1024, "MiB")
	s.add("RSS 5 s later", float64(after)/1024, "MiB")
	return s, nil
}

// enoughDescriptors returns an error if the limit of file descriptors is too low
// for n connections. The limit applies to the generator and to the broker, each
// a process of its own.
func enoughDescriptors(n int) error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	if lim.Max < uint64(n)+200 { //nolint:gosec // a positive number
		return fmt.Errorf("the limit of open files is %d, too few for %d connections: raise it with ulimit -n or ask for fewer", lim.Max, n)
	}
	return nil
}

// measureResume measures the time from CONNECT until a member has every message that
// it missed.
func measureResume(_ context.Context, t *target) (sample, error) {
	const groups, missed, elsewhere, parts = 200, 1000, 100_000, 10
	var mine, mineTopics, others, otherTopics []string
	for i := range groups {
		mine = append(mine, fmt.Sprintf("mine%03d", i))
		mineTopics = append(mineTopics, "group/"+mine[i])
	}
	for i := range 50 {
		others = append(others, fmt.Sprintf("other%02d", i))
		otherTopics = append(otherTopics, "group/"+others[i])
	}
	filters := []mqttwire.Filter{{Topic: "group/+", QoS: 1}}
	if t.name == mosquitto {
		// In Mosquitto, group/+ matches the groups of all users.
		filters = nil
		for _, topic := range mineTopics {
			filters = append(filters, mqttwire.Filter{Topic: topic, QoS: 1})
		}
	}
	member, err := t.subscriber("member", false, false, mine, filters...)
	if err != nil {
		return sample{}, err
	}
	if err := t.RunUntil(t.Ready, connectTimeout, "connect"); err != nil {
		return sample{}, err
	}
	t.CloseSubscriber(member)
	pub := func(number int, groups, topics []string, window int) (*load.Publisher, error) {
		p, err := t.publisher(number, groups, &load.PublishSpec{Topics: topics, QoS: 1, Window: window})
		if err != nil {
			return nil, err
		}
		return p, t.RunUntil(func() bool { return p.Connected() }, connectTimeout, "connect")
	}
	noise, err := pub(0, others, otherTopics, 512)
	if err != nil {
		return sample{}, err
	}
	signal, err := pub(1, mine, mineTopics, inFlight)
	if err != nil {
		return sample{}, err
	}
	for range parts {
		noise.PublishMore(elsewhere / parts)
		if err := t.RunUntil(noise.AllAcknowledged, drainTimeout, "messages elsewhere"); err != nil {
			return sample{}, err
		}
		signal.PublishMore(missed / parts)
		if err := t.RunUntil(signal.AllAcknowledged, drainTimeout, "messages to the member"); err != nil {
			return sample{}, err
		}
	}
	began := time.Now()
	again, err := t.subscriber("member", false, false, mine)
	if err != nil {
		return sample{}, err
	}
	if err := t.RunUntil(func() bool { return again.Seen >= missed }, drainTimeout, "what the member missed"); err != nil {
		return sample{}, fmt.Errorf("%w: %d of %d came", err, again.Seen, missed)
	}
	s := sample{Value: float64(time.Since(began).Microseconds()) / 1000}
	if err := t.RunFor(200 * time.Millisecond); err != nil {
		return s, err
	}
	if again.Seen != missed {
		return s, fmt.Errorf("%d messages came, %d were missed", again.Seen, missed)
	}
	return s, again.Check(false)
}

// measureLargeGroup measures how long one message takes to reach all members of a group.
func measureLargeGroup(ctx context.Context, t *target) (_ sample, err error) {
	if err := enoughDescriptors(t.crowd); err != nil {
		return sample{}, err
	}
	p, subs, err := t.connectGroup(t.crowd, 1)
	if err != nil {
		return sample{}, err
	}
	profiled := t.startCPUProfile(ctx, 3)
	defer func() { err = errors.Join(err, profiled()) }()
	var took []float64
	var cpu time.Duration
	for i := range 6 {
		if err := t.RunFor(300 * time.Millisecond); err != nil {
			return sample{}, err
		}
		cpu0, _ := t.cpu()
		began := time.Now()
		want := totalDelivered(subs) + uint64(len(subs))
		p.PublishMore(1)
		// To check 10,000 subscribers after every round of events would cost
		// more than to read from them. So one subscriber is waited for at a
		// time.
		waiting := len(subs)
		if err := t.RunUntil(func() bool {
			for waiting > 0 && subs[waiting-1].NextNumber(0) == p.Sent {
				waiting--
			}
			return waiting == 0
		}, drainTimeout, "the last member"); err != nil {
			return sample{}, err
		}
		if got := totalDelivered(subs); got != want {
			return sample{}, errors.Join(fmt.Errorf("%d deliveries, want %d", got, want), subs[0].Check(false))
		}
		if i == 0 {
			continue // warms up
		}
		took = append(took, float64(time.Since(began).Microseconds())/1000)
		cpu1, _ := t.cpu()
		cpu += cpu1 - cpu0
	}
	m, _ := median(took)
	s := sample{Value: m}
	s.add("slowest of 5", took[len(took)-1], "ms")
	s.add("broker CPU", float64(cpu.Nanoseconds())/1000/float64(5*len(subs)), "µs/delivery")
	return s, t.waitAllDelivered([]*load.Publisher{p}, subs, func(*load.Subscriber) uint64 { return p.Sent })
}
