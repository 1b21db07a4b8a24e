package broker

import (
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
)

// system holds the figures that are told on $SYS/broker and kept nowhere else.
type system struct {
	started  time.Time    // when the broker was made
	received atomic.Int64 // PUBLISHes of clients
	clients  atomic.Int64 // those that are connected, having been let in
	maximum  atomic.Int64 // most of them at the same time
}

// arrived counts a client that has been let in.
func (s *system) arrived() {
	clients := s.clients.Add(1)
	for {
		most := s.maximum.Load()
		if clients <= most || s.maximum.CompareAndSwap(most, clients) {
			return
		}
	}
}

// gone counts one that is not there any more.
func (s *system) gone() { s.clients.Add(-1) }

// tellSystem tells the broker's figures, retained, on the topics that brokers have for
// them. Prometheus gets more of them: see metrics.
//
// Mochi's own loop for this is not run: every second it copies the table of all clients.
func (b *Broker) tellSystem() {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	stats, now := b.engine.Stats(), time.Now()
	connected, sessions := b.system.clients.Load(), int64(b.engine.Count())
	b.topics.PublishLatest("$SYS/broker/version", []byte(b.cfg.Version), 0)
	for topic, value := range map[string]int64{
		"time": now.Unix(), "started": b.system.started.Unix(), "uptime": int64(now.Sub(b.system.started).Seconds()),
		"clients/connected": connected, "clients/maximum": b.system.maximum.Load(),
		"clients/total": sessions, "clients/disconnected": max(sessions-connected, 0),
		"messages/received": b.system.received.Load(),
		"messages/sent":     int64(stats.Deliveries.Load() + stats.Signals.Load()),   //nolint:gosec // far from 63 bits
		"messages/dropped":  int64(stats.Dropped.Load() + stats.PlainDropped.Load()), //nolint:gosec // the same
		"retained":          int64(b.topics.RetainedCount()),
		"subscriptions":     int64(b.engine.Subscriptions()),
		"system/memory":     int64(m.HeapInuse), //nolint:gosec // the same
		"system/threads":    int64(runtime.NumGoroutine()),
	} {
		b.topics.PublishLatest("$SYS/broker/"+topic, strconv.AppendInt(nil, value, 10), 0)
	}
}
