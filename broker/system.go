package broker

import (
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
)

// system holds the figures that are published on $SYS/broker and kept nowhere else.
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

// publishSystem publishes the broker's figures, retained, on the topics that brokers have for
// them. Prometheus gets more of them: see metrics.
//
// Mochi's own loop for this is not run: every second it copies the table of all clients.
func (m *maintenance) publishSystem() {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	stats, plain, now := m.engine.Stats(), m.topics.Queues().Stats(), time.Now()
	connected, sessions := m.system.clients.Load(), int64(m.engine.Count())
	m.topics.PublishLatest("$SYS/broker/version", []byte(m.version), 0)
	for topic, value := range map[string]int64{
		"time": now.Unix(), "started": m.system.started.Unix(), "uptime": int64(now.Sub(m.system.started).Seconds()),
		"clients/connected": connected, "clients/maximum": m.system.maximum.Load(),
		"clients/total": sessions, "clients/disconnected": max(sessions-connected, 0),
		"messages/received": m.system.received.Load(),
		"messages/sent":     int64(stats.Deliveries.Load() + stats.Signals.Load() + plain.Deliveries.Load()), //nolint:gosec // far from 63 bits
		"messages/dropped":  int64(stats.Dropped.Load() + plain.Dropped.Load()),                              //nolint:gosec // the same
		"retained":          int64(m.topics.RetainedCount()),
		"subscriptions":     int64(m.engine.Subscriptions()),
		"system/memory":     int64(memory.HeapInuse), //nolint:gosec // the same
		"system/threads":    int64(runtime.NumGoroutine()),
	} {
		m.topics.PublishLatest("$SYS/broker/"+topic, strconv.AppendInt(nil, value, 10), 0)
	}
}
