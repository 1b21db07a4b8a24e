package delivery

import (
	"sort"

	"mynah/broker/msglog"
	"mynah/chat"
)

// remember keeps messages of topics that somebody attached subscribes to.
func (e *Engine) remember(recs []*msglog.Record) {
	for _, rec := range recs {
		e.rememberOn(rec.To, rec)
		if to := chat.ParseTopic(rec.To); to.Kind == chat.KindUser && to.ID != rec.From {
			e.rememberOn(chat.UserTopic(rec.From), rec)
		}
	}
	for e.recentBytes > e.cfg.Recent {
		e.forgetOldest()
	}
}

// recordOverhead is about what a remembered message costs beside its tail.
const recordOverhead = 256

func (e *Engine) rememberOn(topic string, rec *msglog.Record) {
	en := e.entryOf(topic)
	if en == nil {
		return
	}
	en.mu.Lock()
	en.recent = append(en.recent, rec)
	en.mu.Unlock()
	e.recentFIFO = append(e.recentFIFO, en)
	e.recentBytes += int64(len(rec.Tail) + recordOverhead)
}

func (e *Engine) forgetOldest() {
	en := e.recentFIFO[0]
	e.recentFIFO[0] = nil
	e.recentFIFO = e.recentFIFO[1:]
	en.mu.Lock()
	rec := en.recent[0]
	en.recent[0] = nil
	en.recent = en.recent[1:]
	en.recentFrom = max(en.recentFrom, rec.Seq)
	en.mu.Unlock()
	e.recentBytes -= int64(len(rec.Tail) + recordOverhead)
}

// collectRecent reads from what the engine remembers of a topic. It reports false if
// that does not reach back far enough.
func (e *Engine) collectRecent(w *pumpWork, t *topicSub, from, upto uint64, limit int) bool {
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
		w.items = append(w.items, item{rec, t})
	}
	return true
}
