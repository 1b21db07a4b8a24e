package ledger

import (
	"fmt"
	"slices"
)

// Report is what the check found.
type Report struct {
	Acked    int // messages acknowledged
	Archived int // different messages in the archive
	Received int // deliveries

	// Missing counts acknowledged messages that are not archived, and
	// deliveries that did not come or whose content differs. Duplicate counts
	// surplus rows and deliveries. Reordered counts first deliveries that are
	// out of seq order or whose prev is not the seq before.
	Missing, Duplicate, Reordered int
	// OtherViolations counts all other violations.
	OtherViolations int
	// Redelivered counts repetitions at QoS 1, which are allowed.
	Redelivered int

	// Details describes the first findings of each kind.
	Details []string
	omitted map[string]int
}

// OK reports whether the check found no violation.
func (r *Report) OK() bool { return r.Missing+r.Duplicate+r.Reordered+r.OtherViolations == 0 }

// maxDetailsPerKind is the number of findings of a kind that are described.
const maxDetailsPerKind = 15

func (r *Report) add(counter *int, kind, format string, args ...any) {
	*counter++
	if r.omitted[kind]++; r.omitted[kind] <= maxDetailsPerKind {
		r.Details = append(r.Details, kind+": "+fmt.Sprintf(format, args...))
	}
}

func (l *Ledger) addViolation(format string, args ...any) {
	l.violations = append(l.violations, fmt.Sprintf(format, args...))
}

// Check compares what was sent, acknowledged, received and archived.
func (l *Ledger) Check() *Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &Report{Acked: l.acked, omitted: map[string]int{}}
	for _, text := range l.violations {
		r.add(&r.OtherViolations, "odd", "%s", text)
	}
	stored := l.checkArchive(r)
	for _, name := range l.names {
		s := l.subs[name]
		var topics []string
		for t := range s.topics {
			topics = append(topics, t)
		}
		slices.Sort(topics)
		for _, t := range topics {
			l.checkInbox(r, name, s.topics[t], stored)
		}
		r.Received += s.deliveries
	}
	for kind, n := range r.omitted {
		if n > maxDetailsPerKind {
			r.Details = append(r.Details, fmt.Sprintf("%s: and %d more", kind, n-maxDetailsPerKind))
		}
	}
	return r
}

// checkArchive returns the seq of each archived message.
func (l *Ledger) checkArchive(r *Report) map[string]uint64 {
	stored := map[string]uint64{}
	for _, row := range l.archive {
		m := l.messages[row.Content.Key]
		if m == nil {
			r.add(&r.OtherViolations, "archive", "seq %d on %s holds %q, which nobody sent", row.Seq, row.Topic, row.Content.Key)
			continue
		}
		if first, ok := stored[m.Key]; ok {
			r.add(&r.Duplicate, "archived twice", "%s, at seq %d and %d", l.describe(m), first, row.Seq)
			continue
		}
		stored[m.Key] = row.Seq
		if row.Content.Digest != m.Digest || row.Topic != m.Topic || l.rules.Ordered && (row.Sender != m.Sender || row.Mid != m.Mid || row.Content.From != m.Sender || row.Content.To != m.Topic || row.Content.Seq != row.Seq) {
			r.add(&r.Missing, "archived with another content", "%s, at seq %d on %s from %q with mid %q", l.describe(m), row.Seq, row.Topic, row.Sender, row.Mid)
		}
	}
	r.Archived = len(stored)
	for _, m := range l.order {
		if _, ok := stored[m.Key]; !ok && m.acked {
			r.add(&r.Missing, "acknowledged, not archived", "%s", l.describe(m))
		}
	}
	return stored
}

func (l *Ledger) describe(m *Message) string {
	s := fmt.Sprintf("%s on %s, QoS %d, sent %s", m.Key, m.Topic, m.QoS, m.sent.Format("15:04:05.000"))
	if m.Mid != "" {
		s += ", with mid"
	}
	if m.republished {
		s += ", sent again as new"
	}
	return s
}

func (l *Ledger) checkInbox(r *Report, name string, in *inbox, stored map[string]uint64) {
	first := map[string]*received{}
	lastSeq, known := uint64(0), in.Since.IsZero() && !in.Pending
	lastNumber := map[string]uint64{} // by sender and QoS
	where := name + " on " + in.Topic
	for _, d := range in.deliveries {
		if d.message == nil {
			r.add(&r.OtherViolations, "received, never sent", "%s: %q", where, d.key)
			continue
		}
		if !l.isDeliveredOn(d.message, in.Topic) {
			r.add(&r.OtherViolations, "received on the wrong topic", "%s: %s", where, l.describe(d.message))
		}
		if !d.unchanged {
			r.add(&r.Missing, "received with another content", "%s: %s", where, l.describe(d.message))
		}
		want := min(d.message.QoS, in.QoS)
		if d.qos != want {
			r.add(&r.OtherViolations, "received at the wrong QoS", "%s: %s came at QoS %d", where, l.describe(d.message), d.qos)
		}
		if f := first[d.key]; f != nil {
			f.count++
			l.checkRepetition(r, where, d, f, want)
			continue
		}
		d.count = 1
		first[d.key] = d
		if l.rules.Ordered {
			switch {
			case d.seq <= lastSeq:
				r.add(&r.Reordered, "out of order", "%s: seq %d (%s) came after %d", where, d.seq, l.describe(d.message), lastSeq)
			case known && d.prev != lastSeq:
				r.add(&r.Reordered, "prev broken", "%s: seq %d (%s) has prev %d, the one before was %d", where, d.seq, l.describe(d.message), d.prev, lastSeq)
			}
			lastSeq, known = max(lastSeq, d.seq), true
			if seq, ok := stored[d.key]; !ok {
				r.add(&r.Missing, "received, not archived", "%s: %s, seq %d", where, l.describe(d.message), d.seq)
			} else if seq != d.seq {
				r.add(&r.OtherViolations, "another seq than archived", "%s: %s, seq %d, archived at %d", where, l.describe(d.message), d.seq, seq)
			}
		}
		if !d.message.republished {
			flow := fmt.Sprint(d.message.Sender, d.message.QoS)
			if d.message.Number <= lastNumber[flow] {
				r.add(&r.Reordered, "sender's order broken", "%s: %s came after number %d of the same sender", where, l.describe(d.message), lastNumber[flow])
			}
			lastNumber[flow] = max(lastNumber[flow], d.message.Number)
		}
	}
	for _, m := range l.order {
		_, archived := stored[m.Key]
		if first[m.Key] == nil && (archived || m.acked) && l.mustArrive(m, in) {
			r.add(&r.Missing, "not received", "%s: %s, seq %d", where, l.describe(m), stored[m.Key])
		}
	}
}

// checkRepetition checks a second delivery of a message. At QoS 2 it is a
// violation. At QoS 1 it is allowed on another connection.
func (l *Ledger) checkRepetition(r *Report, where string, d, f *received, qos byte) {
	switch {
	case qos == 2:
		r.add(&r.Duplicate, "received twice at QoS 2", "%s: %s, on connections %d and %d, seq %d and %d", where, l.describe(d.message), f.conn, d.conn, f.seq, d.seq)
	case f.seq != d.seq:
		r.add(&r.Duplicate, "received at two seqs", "%s: %s, seq %d and %d", where, l.describe(d.message), f.seq, d.seq)
	case f.conn == d.conn && l.rules.Ordered:
		r.add(&r.Duplicate, "received twice on one connection", "%s: %s, dup %v", where, l.describe(d.message), d.dup)
	default:
		r.Redelivered++
	}
}
