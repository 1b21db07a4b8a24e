package delivery

import (
	"context"
	"sort"

	"mynah/broker/msglog"
	"mynah/chat"
)

// collect reads the next messages after pos up to target for the plan into w.items,
// about limit of them, in seq order and each once. Nothing between pos and the
// horizon it returns is left out.
func (s *Session) collect(w *pumpWork, p *plan, pos, target uint64, limit int) (horizon uint64, err error) {
	e := s.engine
	w.items = w.items[:0]
	s.collectGap(w, p, pos)
	if p.users != nil || p.groups != nil {
		return e.collectAll(w, p, pos, target, limit)
	}
	perTopic := limit
	if n := len(p.topics); n > 4 {
		perTopic = max(pumpPerTopic, 2*limit/n)
	}
	horizon = target
	for _, t := range p.topics {
		from := max(pos, t.since)
		if from >= horizon {
			continue
		}
		before := len(w.items)
		if !e.collectRecent(w, t, from, horizon, perTopic) {
			if tail, err := e.log.Tail(t.topic); err != nil {
				return 0, err
			} else if tail <= from {
				continue
			}
			err := e.log.ReadTopic(context.Background(), t.topic, from, horizon, func(rec *msglog.Record) bool {
				w.items = append(w.items, item{rec, t})
				return len(w.items)-before < perTopic
			})
			if err != nil {
				return 0, err
			}
		}
		if n := len(w.items); n-before >= perTopic {
			horizon = w.items[n-1].rec.Seq // there may be more of this topic behind it
		}
	}
	sort.Slice(w.items, func(i, j int) bool {
		a, b := w.items[i], w.items[j]
		if a.rec.Seq != b.rec.Seq {
			return a.rec.Seq < b.rec.Seq
		}
		return a.sub.topic == a.rec.To && b.sub.topic != b.rec.To
	})
	kept := w.items[:0]
	for _, it := range w.items {
		if it.rec.Seq > horizon {
			break
		}
		if n := len(kept); n > 0 && kept[n-1].rec.Seq == it.rec.Seq && it.rec.Seq > 0 {
			continue // a direct message between two subscribed users is one message
		}
		kept = append(kept, it)
	}
	w.items = kept
	return horizon, nil
}

// collectGap puts a notice before everything else if the log no longer reaches back
// to the session's position.
func (s *Session) collectGap(w *pumpWork, p *plan, pos uint64) {
	e := s.engine
	first, _ := e.log.Bounds()
	w.gapTo, w.gaps = 0, 0
	if pos+1 >= first {
		return
	}
	w.gapTo = first - 1
	s.mu.Lock()
	noticed := s.noticed
	s.mu.Unlock()
	for topic, t := range p.byName {
		if _, done := noticed[topic]; done || t.signal || t.since+1 >= first {
			continue
		}
		if topic == allUsers || topic == allGroups {
			e.logger.Error("the log no longer has messages that a subscriber to everything has not had",
				"subject", s.Subject, "client_id", s.ClientID, "from", pos+1, "to", first-1)
			continue
		}
		if tail, err := e.log.Tail(topic); err == nil && tail <= max(pos, t.since) {
			continue // the topic has had nothing since
		}
		rec := &msglog.Record{Message: chat.GapNotice(topic, max(pos, t.since)+1, first-1, e.now().UnixMilli())}
		w.items = append(w.items, item{rec, t})
	}
	w.gaps = len(w.items)
}

// collectAll is collect for a session that subscribes to everything.
func (e *Engine) collectAll(w *pumpWork, p *plan, pos, target uint64, limit int) (uint64, error) {
	horizon, seen := target, 0
	err := e.log.Read(context.Background(), pos, target, func(rec *msglog.Record) bool {
		if t := p.match(rec); t != nil {
			w.items = append(w.items, item{rec, t})
		}
		if seen++; len(w.items) >= limit || seen >= 8*limit {
			horizon = rec.Seq
			return false
		}
		return true
	})
	return horizon, err
}
