package delivery

import (
	"sort"

	"mynah/broker/msglog"
	"mynah/chat"
)

// recent keeps the newest messages of topics that somebody attached subscribes to, for
// sessions that are slightly behind. The messages are in the topics' entries; this is the
// order in which they are forgotten. Only Deliver uses it.
type recent struct {
	topics *registry
	max    int64    // bytes
	fifo   []*entry // one for each remembered message, oldest first
	bytes  int64
}

// add keeps messages of topics that somebody attached subscribes to.
func (r *recent) add(recs []*msglog.Record) {
	for _, rec := range recs {
		r.addTo(rec.To, rec)
		if to := chat.ParseTopic(rec.To); to.Kind == chat.KindUser && to.ID != rec.From {
			r.addTo(chat.UserTopic(rec.From), rec)
		}
	}
	for r.bytes > r.max {
		r.forgetOldest()
	}
}

// recordOverhead is about what a remembered message costs beside its tail.
const recordOverhead = 256

func (r *recent) addTo(topic string, rec *msglog.Record) {
	en := r.topics.get(topic)
	if en == nil {
		return
	}
	en.mu.Lock()
	en.recent = append(en.recent, rec)
	en.mu.Unlock()
	r.fifo = append(r.fifo, en)
	r.bytes += int64(len(rec.Tail) + recordOverhead)
}

func (r *recent) forgetOldest() {
	en := r.fifo[0]
	r.fifo[0] = nil
	r.fifo = r.fifo[1:]
	en.mu.Lock()
	rec := en.recent[0]
	en.recent[0] = nil
	en.recent = en.recent[1:]
	en.recentFrom = max(en.recentFrom, rec.Seq)
	en.mu.Unlock()
	r.bytes -= int64(len(rec.Tail) + recordOverhead)
}

// collectRecent reads from what is remembered of a topic. It reports false if that does not
// reach back far enough.
func (p *pump) collectRecent(t *topicSub, from, upto uint64, limit int) bool {
	en := t.entry.Load()
	if en == nil {
		return false
	}
	en.mu.RLock()
	defer en.mu.RUnlock()
	if en.recentFrom > from {
		return false
	}
	i := sort.Search(len(en.recent), func(i int) bool { return en.recent[i].Seq > from })
	for _, rec := range en.recent[i:min(len(en.recent), i+limit)] {
		if rec.Seq > upto {
			break
		}
		p.items = append(p.items, item{rec, t})
	}
	return true
}
