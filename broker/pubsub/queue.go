package pubsub

import (
	"maps"
	"slices"

	"mynah/broker/session"
)

// queue is what a session has been given of topics outside the chat and is not done
// with. It belongs to the session, not to its connection. Messages wait in it for the
// client's Receive Maximum and for room in the outbox; what is under way at QoS 1 or 2 has
// a packet id of the session's window. The session's Mu guards it. It implements
// session.Queue.
//
// Nothing waits in it unnoticed: the session's Feed has it send whenever an acknowledgement
// has come, the outbox has room again, a connection begins, or it is known what is retained
// (Feed.Advance); while the session is behind, messages take turns with the log.
type queue struct {
	qs *Queues
	s  *session.Session

	waiting []item              // not sent yet, oldest first
	passing []item              // the same at QoS 0: it does not wait for acknowledgements and ends with the connection
	sent    map[uint16]item     // by packet id; what the client has not said that it has
	again   []uint16            // of them, those that the present connection has not had, in order
	prompt  int                 // how many that wait are prompt
	latest  map[string]struct{} // topics of Latest messages that wait
	asked   map[string]struct{} // filters of SUBSCRIBEs of which retained messages wait
	bytes   int                 // cost of all
	soonest int64               // no message that waits expires before this, in milliseconds since 1970; 0 if none does
	swept   int64               // when those that had expired were last looked for
	logged  bool                // that it is full, since it was last empty
	dropped bool                // the session has no part in it any more
	looking bool                // it is being looked for what is retained
	found   map[string]*Message // what was found, by topic
}

// item is a message on its way to a session.
type item struct {
	msg    *Message // nil if topics is not
	topics []string // whose retained messages are meant, as they are when their turn comes
	filter string   // of the SUBSCRIBE that asks for them, "" for a Latest message
	ids    []int
	share  string
	qos    byte // with topics: the highest
	retain bool
	prompt bool // its time is over, but it has reached the session at once
}

func (it *item) cost() int {
	if it.msg != nil {
		return it.msg.cost()
	}
	return len(it.topics) * topicCost
}

// topicCost is about what a topic costs whose retained message is to be sent.
const topicCost = 32

func (q *queue) messages() int { return len(q.waiting) + len(q.passing) + len(q.sent) }

// Idle implements session.Queue.
func (q *queue) Idle() bool {
	return len(q.waiting)+len(q.passing)+len(q.again) == 0
}

// HasQoS0 implements session.Queue.
func (q *queue) HasQoS0() bool { return len(q.passing) > 0 }

// Shrink implements session.Queue: it gives back the memory of a map that was larger once.
func (q *queue) Shrink() {
	var sent map[uint16]item
	if len(q.sent) > 0 {
		sent = make(map[uint16]item, len(q.sent))
		maps.Copy(sent, q.sent)
	}
	q.sent = sent
}

// put takes an item, which may be sent at once. It reports false if the session does not take
// it.
func (q *queue) put(it item) bool {
	m := it.msg
	if m.Latest {
		if _, waits := q.latest[m.Topic]; waits {
			return true
		}
		it.msg, it.topics = nil, []string{m.Topic}
	}
	if !q.admit(it) {
		return false
	}
	if m.Latest {
		if q.latest == nil {
			q.latest = map[string]struct{}{}
		}
		q.latest[m.Topic] = struct{}{}
	}
	if it.prompt {
		q.prompt++
	}
	if it.qos == 0 && it.msg != nil {
		q.passing = append(q.passing, it)
	} else {
		q.wait(it)
	}
	q.s.Feed.Advance()
	if it.prompt && q.prompt > 0 && !q.looking && !q.s.Feed.Prompt() {
		q.Delayed()
		return false
	}
	return true
}

// Delayed implements session.Queue: messages that were for those only who are reached at once
// are forgotten.
func (q *queue) Delayed() {
	if q.prompt == 0 {
		return
	}
	q.prompt = 0
	over := func(it item) bool {
		if it.prompt {
			q.count(-it.cost())
		}
		return it.prompt
	}
	q.waiting, q.passing = slices.DeleteFunc(q.waiting, over), slices.DeleteFunc(q.passing, over)
}

// putRetained takes in that the retained messages of topics are to be sent.
func (q *queue) putRetained(filter string, topics []string, o Options) {
	q.forgetRetained(filter)
	it := item{topics: topics, filter: filter, ids: o.IDs, qos: o.QoS, retain: true}
	if !q.admit(it) {
		return
	}
	q.wait(it)
	if q.asked == nil {
		q.asked = map[string]struct{}{}
	}
	q.asked[filter] = struct{}{}
	q.s.Feed.Advance()
}

// admit reports whether one item more may wait, and counts it.
func (q *queue) admit(it item) bool {
	cfg, cost := &q.qs.cfg, it.cost()
	full := func() bool {
		// The less there is left for all, the less each may hold: one who fills many
		// sessions leaves room for those who hold little.
		free := cfg.Total - q.qs.held.Load()
		return q.messages() > 0 && (q.messages() >= cfg.Messages ||
			int64(q.bytes+cost) > int64(cfg.Bytes)*free/cfg.Total)
	}
	if full() {
		q.dropExpired()
	}
	if full() {
		q.qs.stats.Dropped.Add(1)
		if !q.logged {
			q.logged = true
			cfg.Logger.Warn("a session has too much waiting of topics outside the chat: what comes is dropped until the client takes some",
				"subject", q.s.Subject, "client_id", q.s.ClientID, "messages", q.messages(), "bytes", q.bytes, "connected", q.s.Conn != nil)
		}
		return false
	}
	q.count(cost)
	return true
}

// count says that the queue holds so many bytes more.
func (q *queue) count(bytes int) {
	q.bytes += bytes
	q.qs.held.Add(int64(bytes))
}

// wait puts an item behind those that wait.
func (q *queue) wait(it item) {
	q.waiting = append(q.waiting, it)
	q.expires(it)
}

// expires notes when an item that waits does.
func (q *queue) expires(it item) {
	if it.msg != nil && it.msg.Expires > 0 && (q.soonest == 0 || it.msg.Expires < q.soonest) {
		q.soonest = it.msg.Expires
	}
}

// sweepInterval is how long, in milliseconds, what has expired may take up room that is
// wanted.
const sweepInterval = 1000

// dropExpired forgets what nobody is to get any more. A publisher waits for it with
// every message that a full session is to get, so it goes through what waits only if it
// has reason to, and not for each message that expires a moment after another.
func (q *queue) dropExpired() {
	now := q.qs.cfg.Now().UnixMilli()
	if q.soonest == 0 || now < q.soonest || now >= q.swept && now < q.swept+sweepInterval {
		return
	}
	q.soonest, q.swept = 0, now
	q.waiting = slices.DeleteFunc(q.waiting, func(it item) bool {
		over := it.msg != nil && it.msg.expired(now) && !it.prompt
		if over {
			q.count(-it.cost())
		} else {
			q.expires(it)
		}
		return over
	})
}

// forgetRetained is Queues.ForgetRetained. Whoever delivers to anybody may be waiting for the
// lock, so it goes through what waits once, however many filters there are, and not at all
// if none of them has anything there.
func (q *queue) forgetRetained(filters ...string) {
	if len(q.asked) == 0 {
		return
	}
	var over map[string]struct{}
	for _, f := range filters {
		if _, waits := q.asked[f]; waits {
			if over == nil {
				over = map[string]struct{}{}
			}
			over[f] = struct{}{}
			q.answered(f)
		}
	}
	if over == nil {
		return
	}
	q.waiting = slices.DeleteFunc(q.waiting, func(it item) bool {
		_, is := over[it.filter]
		if is {
			q.count(-it.cost())
		}
		return is
	})
}

// answered says that nothing waits any more of what a SUBSCRIBE asked for.
func (q *queue) answered(filter string) {
	if delete(q.asked, filter); len(q.asked) == 0 {
		q.asked = nil // a map keeps the room that it once needed
	}
}

// Forget implements session.Queue.
func (q *queue) Forget(id uint16) {
	if it, ok := q.sent[id]; ok {
		q.count(-it.cost())
		delete(q.sent, id)
	}
}

// release forgets a message that the client may have at QoS 2 and is not to get again,
// but not its packet id before the client does: PUBREL is due (MQTT 5, 4.3.3). A client that
// never had the message says so, with Packet Identifier not found (3.7.2.1).
func (q *queue) release(id uint16, e *session.Inflight) {
	e.State = session.StateReceived
	q.Forget(id)
}

// Attached implements session.Queue.
func (q *queue) Attached() {
	q.again = nil
	for i := range q.s.Window.Len() {
		if e := q.s.Window.At(i); e.Kind == session.Queued && e.State != session.StateDone {
			q.again = append(q.again, e.ID)
		}
	}
}

// Detached implements session.Queue.
func (q *queue) Detached() {
	q.Delayed()
	for _, it := range q.passing {
		q.count(-it.cost())
	}
	q.passing = nil
	q.Shrink()
}

// Drop implements session.Queue. Others may still get messages of shared subscriptions that
// this client has not had, or not for certain and then not at QoS 2 (MQTT 5, 4.8.2).
func (q *queue) Drop() {
	var left []Orphan
	for _, id := range slices.Sorted(maps.Keys(q.sent)) {
		if it := q.sent[id]; it.share != "" && it.qos == 1 {
			left = append(left, Orphan{it.msg, it.share})
		}
	}
	for _, it := range slices.Concat(q.waiting, q.passing) {
		if it.share != "" && it.msg != nil {
			left = append(left, Orphan{it.msg, it.share})
		}
	}
	q.count(-q.bytes)
	q.dropped = true
	q.qs.orphan(left)
}

// topics is Queues.Topics.
func (q *queue) topics() []string {
	topics := map[string]struct{}{}
	note := func(it item) {
		if it.msg != nil {
			topics[it.msg.Topic] = struct{}{}
		}
		for _, t := range it.topics {
			topics[t] = struct{}{}
		}
	}
	for _, it := range q.waiting {
		note(it)
	}
	for _, it := range q.sent {
		note(it)
	}
	return slices.Collect(maps.Keys(topics))
}

// forgetTopics is Queues.ForgetTopics.
func (q *queue) forgetTopics(topics map[string]struct{}) {
	is := func(topic string) bool { _, ok := topics[topic]; return ok }
	kept := q.waiting[:0]
	for _, it := range q.waiting {
		before := it.cost()
		if it.msg == nil {
			it.topics = slices.DeleteFunc(slices.Clone(it.topics), is)
		}
		if it.msg == nil && len(it.topics) > 0 || it.msg != nil && !is(it.msg.Topic) {
			kept = append(kept, it)
			before -= it.cost()
		} else if it.filter != "" {
			q.answered(it.filter)
		} else if it.prompt {
			q.prompt--
		}
		q.count(-before)
	}
	clear(q.waiting[len(kept):])
	q.waiting = kept
	maps.DeleteFunc(q.latest, func(topic string, _ struct{}) bool { return is(topic) })
	for id, it := range q.sent {
		switch e := q.s.Window.Get(id); {
		case !is(it.msg.Topic) || e.OnWire && q.s.Conn != nil:
		case it.qos == 2:
			q.release(id, e)
		default:
			q.s.Feed.Finish(id, e)
		}
	}
}
