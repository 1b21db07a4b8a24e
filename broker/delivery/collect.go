package delivery

import (
	"context"
	"sort"

	"mynah/broker/msglog"
	"mynah/broker/session"
	"mynah/chat"
)

// collect reads the next messages after pos up to target for the plan into p.items,
// about limit of them, in seq order and each once. Nothing between pos and the
// horizon it returns is left out.
func (p *pump) collect(plan *plan, pos, target uint64, limit int) (horizon uint64, err error) {
	e := p.s.engine
	p.items = p.items[:0]
	p.collectGap(plan, pos)
	if plan.users != nil || plan.groups != nil {
		return p.collectAll(plan, pos, target, limit)
	}
	perTopic := limit
	if n := len(plan.topics); n > 4 {
		perTopic = max(pumpPerTopic, 2*limit/n)
	}
	horizon = target
	for _, t := range plan.topics {
		from := max(pos, t.since)
		if from >= horizon {
			continue
		}
		before := len(p.items)
		if !p.collectRecent(t, from, horizon, perTopic) {
			if tail, err := e.log.Tail(t.topic); err != nil {
				return 0, err
			} else if tail <= from {
				continue
			}
			err := e.log.ReadTopic(context.Background(), t.topic, from, horizon, func(rec *msglog.Record) bool {
				p.items = append(p.items, item{rec, t})
				return len(p.items)-before < perTopic
			})
			if err != nil {
				return 0, err
			}
		}
		if n := len(p.items); n-before >= perTopic {
			horizon = p.items[n-1].rec.Seq // there may be more of this topic behind it
		}
	}
	sort.Slice(p.items, func(i, j int) bool {
		a, b := p.items[i], p.items[j]
		if a.rec.Seq != b.rec.Seq {
			return a.rec.Seq < b.rec.Seq
		}
		return a.sub.topic == a.rec.To && b.sub.topic != b.rec.To
	})
	kept := p.items[:0]
	for _, it := range p.items {
		if it.rec.Seq > horizon {
			break
		}
		if n := len(kept); n > 0 && kept[n-1].rec.Seq == it.rec.Seq && it.rec.Seq > 0 {
			continue // a direct message between two subscribed users is one message
		}
		kept = append(kept, it)
	}
	p.items = kept
	return horizon, nil
}

// collectGap puts a notice before everything else if the log no longer reaches back
// to the session's position.
func (p *pump) collectGap(plan *plan, pos uint64) {
	e := p.s.engine
	first, _ := e.log.Bounds()
	p.gapTo, p.gaps = 0, 0
	if pos+1 >= first {
		return
	}
	p.gapTo = first - 1
	p.s.Mu.Lock()
	noticed := p.s.noticed
	p.s.Mu.Unlock()
	for topic, t := range plan.byName {
		if _, done := noticed[topic]; done || t.signal || t.since+1 >= first {
			continue
		}
		if topic == session.AllUsers || topic == session.AllGroups {
			e.logger.Error("the log no longer has messages that a subscriber to everything has not had",
				"subject", p.s.Subject, "client_id", p.s.ClientID, "from", pos+1, "to", first-1)
			continue
		}
		if tail, err := e.log.Tail(topic); err == nil && tail <= max(pos, t.since) {
			continue // the topic has had nothing since
		}
		rec := &msglog.Record{Message: chat.GapNotice(topic, max(pos, t.since)+1, first-1, e.now().UnixMilli())}
		p.items = append(p.items, item{rec, t})
	}
	p.gaps = len(p.items)
}

// collectAll is collect for a session that subscribes to everything.
func (p *pump) collectAll(plan *plan, pos, target uint64, limit int) (uint64, error) {
	horizon, seen := target, 0
	err := p.s.engine.log.Read(context.Background(), pos, target, func(rec *msglog.Record) bool {
		if t := plan.match(rec); t != nil {
			p.items = append(p.items, item{rec, t})
		}
		if seen++; len(p.items) >= limit || seen >= 8*limit {
			horizon = rec.Seq
			return false
		}
		return true
	})
	return horizon, err
}
