package delivery

import (
	"maps"
	"math"
	"slices"

	"mynah/broker/session"
	"mynah/chat"
)

// PlainMessage is a message on a topic outside the chat. It is not changed once a session
// has been given it, and shared by all that have.
type PlainMessage struct {
	Topic   string
	Payload []byte
	Props   []byte // MQTT 5 properties as in a PUBLISH (3.3.2.3), but for Message Expiry Interval and Subscription Identifier
	QoS     byte
	Retain  bool        // it was published as a retained message
	Expires int64       // milliseconds since 1970 from which on nobody is to get it, 0 for never, or chat.AtOnce
	From    session.Key // whose session published it; zero for the broker itself
	// Latest says that only the last one on the topic is worth having. It is retained:
	// who gets it late gets what is retained by then.
	Latest bool
}

// PlainOptions is how a session is to get a message.
type PlainOptions struct {
	QoS    byte   // of the subscription
	Retain bool   // keep the message's retain flag (Retain As Published)
	IDs    []int  // subscription identifiers; not changed afterwards
	Share  string // filter of the shared subscription by which the session was chosen, "" for none
}

// PlainTopics is what an Engine tells and asks about topics outside the chat. The first
// three may be called with locks of sessions held and must not call a session back.
type PlainTopics interface {
	// Subscribed says that a session has a subscription, Unsubscribed that it has it no
	// longer. Both come in the order of the changes, at the start for all stored
	// sessions, and at a session's end.
	Subscribed(s *Session, sub session.Subscription)
	Unsubscribed(s *Session, filter string)
	// Retained returns the retained message of a topic, nil if there is none, if that is
	// known without waiting for a disk or for anybody else.
	Retained(topic string) (m *PlainMessage, known bool)
	// LookUpRetained returns what Retained does not know. It is called without locks.
	LookUpRetained(topic string) *PlainMessage
	// Orphaned is given, on a goroutine of its own, what a session has left behind that
	// ended before it acknowledged messages that were for any one of several.
	Orphaned([]Orphan)
}

// Orphan is a message for a shared subscription whose session ended (MQTT 5, 4.8.2).
type Orphan struct {
	Message *PlainMessage
	Share   string // filter of the shared subscription
}

// plainOverhead is about what a waiting message costs beside its bytes.
const plainOverhead = 128

func (m *PlainMessage) cost() int {
	return len(m.Topic) + len(m.Payload) + len(m.Props) + plainOverhead
}

func (m *PlainMessage) expired(now int64) bool { return m.Expires != 0 && m.Expires <= now }

// plainQueue is what a session has been given of topics outside the chat and is not done
// with. It belongs to the session, not to its connection. Messages wait in it for the
// client's Receive Maximum and for room in the outbox; what is under way at QoS 1 or 2 has
// a packet id of the session's window. Session.mu guards it.
//
// Nothing waits in it unnoticed. While a session is live, messages wait either for an
// acknowledgement, and Acknowledged sends them on, or because the outbox has refused one,
// and then onDrain does, or until it is known what is retained, and then whoever has looked
// for that does. While it is behind they take turns with the log, in the pump,
// which wakes for the same reasons and sends what is left when it makes the session
// live. Without a connection they wait for Start.
type plainQueue struct {
	waiting []plainItem              // not sent yet, oldest first
	passing []plainItem              // the same at QoS 0: it does not wait for acknowledgements and ends with the connection
	sent    map[uint16]plainItem     // by packet id; what the client has not said that it has
	again   []uint16                 // of them, those that the present connection has not had, in order
	fresh   int                      // how many that wait are fresh
	latest  map[string]struct{}      // topics of Latest messages that wait
	asked   map[string]struct{}      // filters of SUBSCRIBEs of which retained messages wait
	bytes   int                      // cost of all
	soonest int64                    // no message that waits expires before this, in milliseconds since 1970; 0 if none does
	swept   int64                    // when those that had expired were last looked for
	turn    bool                     // the log has had its turn
	told    bool                     // it has been logged that it is full
	looking bool                     // it is being looked for what is retained
	found   map[string]*PlainMessage // what was found, by topic
}

// plainItem is a message on its way to a session.
type plainItem struct {
	msg    *PlainMessage // nil if topics is not
	topics []string      // whose retained messages are meant, as they are when their turn comes
	filter string        // of the SUBSCRIBE that asks for them, "" for a Latest message
	ids    []int
	share  string
	qos    byte // with topics: the most
	retain bool
	fresh  bool // its time is over, but it has reached the session at once
}

func (it *plainItem) cost() int {
	if it.msg != nil {
		return it.msg.cost()
	}
	return len(it.topics) * plainTopicCost
}

// plainTopicCost is about what a topic costs whose retained message is to be sent.
const plainTopicCost = 32

func (q *plainQueue) messages() int { return len(q.waiting) + len(q.passing) + len(q.sent) }

func (q *plainQueue) idle() bool {
	return len(q.waiting)+len(q.passing)+len(q.again) == 0
}

// fit gives back the memory of a map that was larger once.
func (q *plainQueue) fit() {
	var sent map[uint16]plainItem
	if len(q.sent) > 0 {
		sent = make(map[uint16]plainItem, len(q.sent))
		maps.Copy(sent, q.sent)
	}
	q.sent = sent
}

// Queue gives the session a message, to be sent when its turn comes. It reports false if
// the session does not take it: it has ended, it is offline and the message would go at
// QoS 0, or it has as much waiting as it may.
func (s *Session) Queue(m *PlainMessage, o PlainOptions) bool {
	it := plainItem{msg: m, ids: o.IDs, share: o.Share, qos: min(m.QoS, o.QoS), retain: m.Retain && o.Retain}
	defer s.survive()
	s.mu.Lock()
	defer s.mu.Unlock()
	it.fresh = m.Expires == chat.AtOnce
	if s.over || (it.qos == 0 || it.fresh) && s.conn == nil {
		return false
	}
	q := s.plainLocked()
	if m.Latest {
		if _, waits := q.latest[m.Topic]; waits {
			return true
		}
		it.msg, it.topics = nil, []string{m.Topic}
	}
	if !s.admitLocked(it) {
		return false
	}
	if m.Latest {
		if q.latest == nil {
			q.latest = map[string]struct{}{}
		}
		q.latest[m.Topic] = struct{}{}
	}
	if it.fresh {
		q.fresh++
	}
	if it.qos == 0 && it.msg != nil {
		q.passing = append(q.passing, it)
	} else {
		q.wait(it)
	}
	s.movePlainLocked()
	if it.fresh && q.fresh > 0 && !q.looking && (s.mode != behind || s.promptFrom == 0) {
		s.dropAtOnceLocked()
		return false
	}
	return true
}

// dropAtOnceLocked forgets what has not been sent of messages that were for those only who
// are reached at once.
func (s *Session) dropAtOnceLocked() {
	q := s.plain
	if q == nil || q.fresh == 0 {
		return
	}
	q.fresh = 0
	over := func(it plainItem) bool {
		if it.fresh {
			s.countPlainLocked(-it.cost())
		}
		return it.fresh
	}
	q.waiting, q.passing = slices.DeleteFunc(q.waiting, over), slices.DeleteFunc(q.passing, over)
}

// QueueRetained has the retained messages of topics sent, as they are when their turn
// comes: what is published meanwhile is never followed by what it replaced. filter is that
// of the SUBSCRIBE; what an earlier one with the same filter asked for need not be sent
// any more.
func (s *Session) QueueRetained(filter string, topics []string, o PlainOptions) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || len(topics) == 0 {
		return
	}
	s.forgetRetainedLocked(filter)
	it := plainItem{topics: topics, filter: filter, ids: o.IDs, qos: o.QoS, retain: true}
	if s.admitLocked(it) {
		q := s.plain
		if q.wait(it); q.asked == nil {
			q.asked = map[string]struct{}{}
		}
		q.asked[filter] = struct{}{}
		s.movePlainLocked()
	}
}

// plainLocked returns the queue, which most sessions never need.
func (s *Session) plainLocked() *plainQueue {
	if s.plain == nil {
		s.plain = &plainQueue{}
	}
	return s.plain
}

// admitLocked reports whether one item more may wait, and counts it.
func (s *Session) admitLocked(it plainItem) bool {
	q, e, cost := s.plainLocked(), s.engine, it.cost()
	full := func() bool {
		// The less there is left for all, the less each may hold: one who fills many
		// sessions leaves room for those who hold little.
		free := e.cfg.PlainTotal - e.plainHeld.Load()
		return q.messages() > 0 && (q.messages() >= e.cfg.PlainMessages ||
			int64(q.bytes+cost) > int64(e.cfg.PlainBytes)*free/e.cfg.PlainTotal)
	}
	if full() {
		s.dropExpiredLocked()
	}
	if full() {
		e.stats.PlainDropped.Add(1)
		if !q.told {
			q.told = true
			e.logger.Warn("a session has too much waiting of topics outside the chat: what comes is dropped until the client takes some",
				"subject", s.Subject, "client_id", s.ClientID, "messages", q.messages(), "bytes", q.bytes, "connected", s.conn != nil)
		}
		return false
	}
	s.countPlainLocked(cost)
	return true
}

func (s *Session) countPlainLocked(bytes int) {
	s.plain.bytes += bytes
	s.engine.plainHeld.Add(int64(bytes))
}

// wait puts an item behind those that wait.
func (q *plainQueue) wait(it plainItem) {
	q.waiting = append(q.waiting, it)
	q.expires(it)
}

// expires notes when an item that waits does.
func (q *plainQueue) expires(it plainItem) {
	if it.msg != nil && it.msg.Expires > 0 && (q.soonest == 0 || it.msg.Expires < q.soonest) {
		q.soonest = it.msg.Expires
	}
}

// sweepInterval is how long, in milliseconds, what has expired may take up room that is
// wanted.
const sweepInterval = 1000

// dropExpiredLocked forgets what nobody is to get any more. A publisher waits for it with
// every message that a full session is to get, so it goes through what waits only if it
// has reason to, and not for each message that expires a moment after another.
func (s *Session) dropExpiredLocked() {
	q, now := s.plain, s.engine.now().UnixMilli()
	if q.soonest == 0 || now < q.soonest || now >= q.swept && now < q.swept+sweepInterval {
		return
	}
	q.soonest, q.swept = 0, now
	q.waiting = slices.DeleteFunc(q.waiting, func(it plainItem) bool {
		over := it.msg != nil && it.msg.expired(now) && !it.fresh
		if over {
			s.countPlainLocked(-it.cost())
		} else {
			q.expires(it)
		}
		return over
	})
}

// ForgetRetained takes out what earlier SUBSCRIBEs with these filters asked for. Before
// QueueRetained for many filters it saves a walk through what waits for each.
func (s *Session) ForgetRetained(filters ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetRetainedLocked(filters...)
}

// forgetRetainedLocked is ForgetRetained. Whoever delivers to anybody may be waiting for the
// lock, so it goes through what waits once, however many filters there are, and not at all
// if none of them has anything there.
func (s *Session) forgetRetainedLocked(filters ...string) {
	q := s.plain
	if q == nil || len(q.asked) == 0 {
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
	q.waiting = slices.DeleteFunc(q.waiting, func(it plainItem) bool {
		_, is := over[it.filter]
		if is {
			s.countPlainLocked(-it.cost())
		}
		return is
	})
}

// answered says that nothing waits any more of what a SUBSCRIBE asked for.
func (q *plainQueue) answered(filter string) {
	if delete(q.asked, filter); len(q.asked) == 0 {
		q.asked = nil // a map keeps the room that it once needed
	}
}

// movePlainLocked sends on what waits if the session is live, and has the pump do it if it
// is behind and there may be room.
func (s *Session) movePlainLocked() {
	switch {
	case s.plain == nil || s.plain.idle():
	case s.mode == live:
		s.sendPlainLocked(math.MaxInt, math.MaxInt)
	case s.mode == behind && (s.quotaLocked() > 0 || len(s.plain.passing) > 0):
		s.wakeLocked()
	}
}

// forgetSentLocked forgets a message that the client has, or is not to get any more.
func (s *Session) forgetSentLocked(id uint16) {
	if it, ok := s.plain.sent[id]; ok {
		s.countPlainLocked(-it.cost())
		delete(s.plain.sent, id)
	}
}

// releaseLocked forgets a message that the client may have at QoS 2 and is not to get again,
// but not its packet id before the client does: PUBREL is due (MQTT 5, 4.3.3). A client that
// never had the message says so, with Packet Identifier not found (3.7.2.1).
func (s *Session) releaseLocked(id uint16, e *session.Inflight) {
	e.State = session.StateReceived
	s.forgetSentLocked(id)
}

// attachPlainLocked prepares for a new connection, which has had nothing yet.
func (s *Session) attachPlainLocked() {
	q := s.plain
	if q == nil {
		return
	}
	q.again = nil
	for i := range s.win.Len() {
		if e := s.win.At(i); e.Seq == 0 && e.State != session.StateDone {
			q.again = append(q.again, e.ID)
		}
	}
}

// detachPlainLocked forgets what ends with a connection.
func (s *Session) detachPlainLocked() {
	if s.plain == nil {
		return
	}
	s.dropAtOnceLocked()
	for _, it := range s.plain.passing {
		s.countPlainLocked(-it.cost())
	}
	s.plain.passing = nil
	s.plain.fit()
}

// endPlain forgets everything, for good, and returns what others may still get of
// it: messages of shared subscriptions that this client has not had, or not for certain and
// then not at QoS 2 (MQTT 5, 4.8.2).
func (s *Session) endPlain() []Orphan {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	return s.dropPlainLocked()
}

// dropPlainLocked is endPlain for a session that goes on.
func (s *Session) dropPlainLocked() []Orphan {
	q := s.plain
	if q == nil {
		return nil
	}
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
	s.engine.plainHeld.Add(-int64(q.bytes))
	s.plain = nil
	return left
}

// orphaned passes on what a session has left behind.
func (e *Engine) orphaned(orphans []Orphan) {
	if len(orphans) > 0 && e.cfg.PlainTopics != nil && !e.closing.Load() {
		e.tasks.Go(func() { e.cfg.PlainTopics.Orphaned(orphans) })
	}
}

// PlainTopics returns the topics outside the chat of which messages wait, or are under way,
// for the session.
func (s *Session) PlainTopics() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plain == nil {
		return nil
	}
	topics := map[string]struct{}{}
	note := func(it plainItem) {
		if it.msg != nil {
			topics[it.msg.Topic] = struct{}{}
		}
		for _, t := range it.topics {
			topics[t] = struct{}{}
		}
	}
	for _, it := range s.plain.waiting {
		note(it)
	}
	for _, it := range s.plain.sent {
		note(it)
	}
	return slices.Collect(maps.Keys(topics))
}

// ForgetPlain forgets the messages of topics that the client may not read any more, but for
// those that it has been sent on its present connection.
func (s *Session) ForgetPlain(topics map[string]struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.plain
	if q == nil {
		return
	}
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
		} else if it.fresh {
			q.fresh--
		}
		s.countPlainLocked(-before)
	}
	clear(q.waiting[len(kept):])
	q.waiting = kept
	maps.DeleteFunc(q.latest, func(topic string, _ struct{}) bool { return is(topic) })
	for id, it := range q.sent {
		switch e := s.win.Get(id); {
		case !is(it.msg.Topic) || e.OnWire && s.conn != nil:
		case it.qos == 2:
			s.releaseLocked(id, e)
		default:
			s.finishLocked(id, e)
		}
	}
}

// tellPlain tells of the session's subscriptions outside the chat. subsMu is held.
func (s *Session) tellPlain(subs ...session.Subscription) {
	if s.engine.cfg.PlainTopics == nil {
		return
	}
	for _, sub := range subs {
		if !session.IsChatFilter(sub.Filter) {
			s.engine.cfg.PlainTopics.Subscribed(s, sub)
		}
	}
}

// untellPlain tells that the session no longer has subscriptions. subsMu is held.
func (s *Session) untellPlain(filters ...string) {
	if s.engine.cfg.PlainTopics == nil {
		return
	}
	for _, f := range filters {
		if !session.IsChatFilter(f) {
			s.engine.cfg.PlainTopics.Unsubscribed(s, f)
		}
	}
}
