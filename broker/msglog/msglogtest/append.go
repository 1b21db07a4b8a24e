//nolint:thelper // these are the tests, not helpers: their own lines are to be reported
package msglogtest

import (
	"fmt"
	"strings"
	"testing"

	"mynah/broker/msglog"
)

func testEmpty(t *testing.T, open Open) {
	l := openTemp(t, open)
	first, last := l.Bounds()
	if first != last+1 || first == 0 || first >= 1<<53 {
		t.Fatalf("bounds of an empty log: %d, %d", first, last)
	}
	if got := readAll(t, l, 0, 1<<60); len(got) != 0 {
		t.Fatalf("an empty log has %v", seqs(got))
	}
	if tail := mustTail(t, l, "user/bob"); tail != 0 {
		t.Fatalf("tail %d, want 0", tail)
	}
	// An empty batch is durable once all before it is.
	if o := appendAll(t, l); len(o) != 0 {
		t.Fatalf("outcomes of nothing: %v", o)
	}
}

// Seqs count by one in the order of appending, over batches, and below 2^53 so
// that JavaScript can read them.
func testOrder(t *testing.T, open Open) {
	l := openTemp(t, open)
	next, _ := l.Bounds()
	var want []*msglog.Record
	for i := range 50 {
		var batch []*msglog.Record
		for j := range i {
			batch = append(batch, msg("alice", fmt.Sprintf("group/%d", j%3), fmt.Sprint(i, j)))
		}
		store(t, l, batch...)
		for _, r := range batch {
			if r.Seq != next || r.Seq >= 1<<53 {
				t.Fatalf("seq %d, want %d", r.Seq, next)
			}
			next++
		}
		want = append(want, batch...)
	}
	wantRecords(t, readAll(t, l, 0, 1<<60), want)
}

// Batches of every size around where an implementation may split them.
func testBatchSizes(t *testing.T, open Open) {
	l := openTemp(t, open)
	var want []*msglog.Record
	for _, n := range []int{1, 2, 63, 64, 65, 127, 128, 129, 1000, 3000} {
		batch := make([]*msglog.Record, n)
		for i := range batch {
			batch[i] = msg("alice", fmt.Sprintf("group/%d", i%7), fmt.Sprint(n, i))
		}
		store(t, l, batch...)
		want = append(want, batch...)
	}
	// One that is large in bytes: messages of 100 KiB among small ones.
	batch := make([]*msglog.Record, 40)
	for i := range batch {
		size := 100 << 10
		if i%3 == 0 {
			size = 10
		}
		batch[i] = msg("alice", "group/1", strings.Repeat("x", size))
	}
	store(t, l, batch...)
	want = append(want, batch...)
	wantRecords(t, readAll(t, l, 0, 1<<60), want)
	for i := range 7 {
		topic := fmt.Sprintf("group/%d", i)
		wantRecords(t, readTopic(t, l, topic, 0, 1<<60), onTopic(want, topic))
	}
}

func onTopic(recs []*msglog.Record, topic string) []*msglog.Record {
	var out []*msglog.Record
	for _, r := range recs {
		if isOn(r, topic) {
			out = append(out, r)
		}
	}
	return out
}

// isOn reports whether a message is delivered on a topic.
func isOn(r *msglog.Record, topic string) bool {
	return r.To == topic || strings.HasPrefix(r.To, "user/") && topic == "user/"+r.From
}

// Every field comes back as it was appended.
func testFields(t *testing.T, open Open) {
	l := openTemp(t, open)
	a := msg("alice", "user/bob", "hello")
	a.TS, a.Type, a.Expires, a.QoS = 1_795_000_000_123, "x-my.type", 1_795_000_000_999, 2
	a.PacketID, a.Digest = 65535, 1<<64-1
	b := withMid(msg("alice", "user/bob", ""), strings.Repeat("m", 64))
	b.Tail, b.Client, b.TS, b.QoS, b.PacketID = nil, "", -5, 0, 0
	c := msg("alice", "user/bob", "what time is it?")
	c.Props, c.Request, c.Expires = []byte("\x08\x00\x01r\x09\x00\x01c"), true, -1
	store(t, l, a, b, c)
	wantRecords(t, readAll(t, l, 0, 1<<60), []*msglog.Record{a, b, c})
	wantRecords(t, readTopic(t, l, "user/alice", 0, 1<<60), []*msglog.Record{a, b, c})
}

// prev is the message before on the topic of delivery, so that a client can tell
// from it that it missed one.
func testPrev(t *testing.T, open Open) {
	dir := t.TempDir()
	l := open(t, dir)
	d1 := msg("alice", "user/bob", "1")   // first of user/bob and user/alice
	g1 := msg("alice", "group/g", "2")    // groups have one topic
	d2 := msg("bob", "user/alice", "3")   // on user/alice after d1, on user/bob after d1
	n1 := msg("alice", "user/alice", "4") // a note to oneself is on one topic
	store(t, l, d1, g1, d2)
	store(t, l, n1)
	d3 := msg("carol", "user/bob", "5")
	store(t, l, d3)
	mustClose(t, l)
	l = open(t, dir)
	defer mustClose(t, l)
	// After a restart prev comes from what is stored.
	d4 := msg("carol", "user/alice", "6")
	g2 := msg("bob", "group/g", "7")
	store(t, l, d4, g2)
	for i, w := range []struct {
		r            *msglog.Record
		prev, sender uint64
	}{
		{d1, 0, 0},
		{g1, 0, 0},
		{d2, d1.Seq, d1.Seq},
		{n1, d2.Seq, 0},
		{d3, d2.Seq, 0},
		{d4, n1.Seq, d3.Seq},
		{g2, g1.Seq, 0},
	} {
		if w.r.Prev != w.prev || w.r.PrevSender != w.sender {
			t.Errorf("message %d: prev %d and %d, want %d and %d", i+1, w.r.Prev, w.r.PrevSender, w.prev, w.sender)
		}
	}
	for topic, want := range map[string]*msglog.Record{"user/alice": d4, "user/bob": d3, "user/carol": d4, "group/g": g2} {
		if got := mustTail(t, l, topic); got != want.Seq {
			t.Errorf("tail of %s is %d, want %d", topic, got, want.Seq)
		}
	}
}

// A second publish with the same sender and mid gets the first one's seq; with
// other content it is a conflict.
func testMid(t *testing.T, open Open) {
	dir := t.TempDir()
	l := open(t, dir)
	a := withMid(msg("alice", "user/bob", "hello"), "m1")
	store(t, l, a)
	for range 2 {
		same := withMid(msg("alice", "user/bob", "hello"), "m1")
		same.Client, same.PacketID = "another device", 77
		other := withMid(msg("alice", "user/bob", "other"), "m1")
		elsewhere := withMid(msg("alice", "user/carol", "hello"), "m1")
		wantOutcomes(t, appendAll(t, l, same, other, elsewhere), msglog.Duplicate, msglog.Conflict, msglog.Conflict)
		if same.Seq != a.Seq {
			t.Fatalf("duplicate got seq %d, want %d", same.Seq, a.Seq)
		}
		// And the same after a restart.
		mustClose(t, l)
		l = open(t, dir)
	}
	defer mustClose(t, l)
	b := withMid(msg("bob", "user/bob", "hello"), "m1") // mids are the sender's own
	c := withMid(msg("alice", "user/bob", "hello"), "m2")
	store(t, l, b, c)
	wantRecords(t, readAll(t, l, 0, 1<<60), []*msglog.Record{a, b, c})
}

// Duplicates inside one batch are found as well: a client that reconnects sends
// again what the sequencer has not taken yet.
func testMidInBatch(t *testing.T, open Open) {
	l := openTemp(t, open)
	a := withMid(msg("alice", "user/bob", "hello"), "m1")
	b := withMid(msg("alice", "user/bob", "hello"), "m1")
	c := withMid(msg("alice", "user/bob", "other"), "m1")
	d := msg("alice", "user/bob", "hello")
	wantOutcomes(t, appendAll(t, l, a, b, c, d), msglog.Stored, msglog.Duplicate, msglog.Conflict, msglog.Stored)
	if b.Seq != a.Seq || d.Seq != a.Seq+1 {
		t.Fatalf("seqs %d %d %d", a.Seq, b.Seq, d.Seq)
	}
	wantRecords(t, readAll(t, l, 0, 1<<60), []*msglog.Record{a, d})
}

// A duplicate of a message that is still on its way to the disk is found, and is
// durable no earlier than that message.
func testMidPending(t *testing.T, open Open) {
	l := openTemp(t, open)
	for i := range 100 {
		a := withMid(msg("alice", "user/bob", fmt.Sprint(i)), fmt.Sprint(i))
		b := withMid(msg("alice", "user/bob", fmt.Sprint(i)), fmt.Sprint(i))
		if _, err := l.Propose(Entry(a)); err != nil {
			t.Fatal(err)
		}
		wantOutcomes(t, appendAll(t, l, b), msglog.Duplicate)
		if _, last := l.Bounds(); b.Seq != a.Seq || last < a.Seq {
			t.Fatalf("duplicate has seq %d, want %d; durable up to %d", b.Seq, a.Seq, last)
		}
	}
}

// What is only asked about is recognised like everything else and never stored, among
// others in a batch and alone.
func testAsk(t *testing.T, open Open) {
	l := openTemp(t, open)
	ask := func(r *msglog.Record) *msglog.Record { r.Ask = true; return r }
	named := withMid(msg("alice", "user/bob", "hello"), "m1")
	numbered := withPacket(msg("alice", "user/bob", "hi"), 1, false)
	store(t, l, named, numbered)
	again, other := ask(withMid(msg("alice", "user/bob", "hello"), "m1")), ask(withMid(msg("alice", "user/bob", "other"), "m1"))
	dup, newDup := ask(withPacket(msg("alice", "user/bob", "hi"), 1, true)), ask(withPacket(msg("alice", "user/bob", "hi"), 2, true))
	fresh := withPacket(msg("alice", "user/bob", "fresh"), 3, false)
	sameBatch := ask(withPacket(msg("alice", "user/bob", "fresh"), 3, true))
	wantOutcomes(t, appendAll(t, l, again, other, dup, newDup, fresh, sameBatch),
		msglog.Duplicate, msglog.Conflict, msglog.Duplicate, msglog.Unknown, msglog.Stored, msglog.Duplicate)
	if again.Seq != named.Seq || dup.Seq != numbered.Seq || sameBatch.Seq != fresh.Seq {
		t.Fatalf("duplicates have the seqs %d, %d, %d", again.Seq, dup.Seq, sameBatch.Seq)
	}
	wantOutcomes(t, appendAll(t, l, ask(withMid(msg("alice", "user/bob", "new"), "m2"))), msglog.Unknown)
	next := withMid(msg("alice", "user/bob", "other"), "m2") // its mid was not taken by asking
	store(t, l, next)
	wantRecords(t, readAll(t, l, 0, 1<<60), []*msglog.Record{named, numbered, fresh, next})
}

// A retransmission without mid is recognised by device, packet id and content.
func testDup(t *testing.T, open Open) {
	dir := t.TempDir()
	l := open(t, dir)
	a := withPacket(msg("alice", "user/bob", "hello"), 1, false)
	store(t, l, a)
	for range 2 {
		again := withPacket(msg("alice", "user/bob", "hello"), 1, true)
		wantOutcomes(t, appendAll(t, l, again), msglog.Duplicate)
		if again.Seq != a.Seq {
			t.Fatalf("duplicate got seq %d, want %d", again.Seq, a.Seq)
		}
		mustClose(t, l)
		l = open(t, dir)
	}
	defer mustClose(t, l)
	qos2 := withPacket(msg("alice", "user/bob", "two"), 2, false)
	qos2.QoS = 2
	store(t, l, qos2)
	again := *qos2
	again.Dup = true
	wantOutcomes(t, appendAll(t, l, &again), msglog.Duplicate)

	// None of these is a retransmission of it.
	notDup := withPacket(msg("alice", "user/bob", "hello"), 1, false)
	otherContent := withPacket(msg("alice", "user/bob", "other"), 2, true)
	otherID := withPacket(msg("alice", "user/bob", "hello"), 9, true)
	otherDevice := withPacket(msg("alice", "user/bob", "hello"), 1, true)
	otherDevice.Client = "alice-tablet"
	otherSender := withPacket(msg("mallory", "user/bob", "hello"), 1, true)
	otherSender.Client = a.Client
	store(t, l, notDup, otherContent, otherID, otherDevice, otherSender)

	// Packet id 1 was used for something else since: the old content with DUP is
	// a new message.
	store(t, l, withPacket(msg("alice", "user/bob", "newer"), 1, false))
	store(t, l, withPacket(msg("alice", "user/bob", "hello"), 1, true))

	// Nor is one of these, which the broker knows to be of another time.
	original := withPacket(msg("carol", "user/bob", "hello"), 1, false)
	store(t, l, original)
	narrowed := func(after, upTo uint64) *msglog.Record {
		r := withPacket(msg("carol", "user/bob", "hello"), 1, true)
		r.DupAfter, r.DupUpTo = after, upTo
		return r
	}
	wantOutcomes(t, appendAll(t, l, narrowed(original.Seq-1, original.Seq)), msglog.Duplicate)
	wantOutcomes(t, appendAll(t, l, narrowed(original.Seq, 0)), msglog.Stored)
	wantOutcomes(t, appendAll(t, l, narrowed(0, original.Seq)), msglog.Stored) // the newer one is what counts
	wantOutcomes(t, appendAll(t, l, narrowed(original.Seq, 0)), msglog.Duplicate)

	// The same over many packet ids, as a client does it that reconnects.
	var first, second []*msglog.Record
	for i := range 500 {
		first = append(first, withPacket(msg("dave", "user/bob", fmt.Sprint(i)), uint16(i+1), false))  //nolint:gosec // small
		second = append(second, withPacket(msg("dave", "user/bob", fmt.Sprint(i)), uint16(i+1), true)) //nolint:gosec // small
	}
	store(t, l, first...)
	for i, o := range appendAll(t, l, second...) {
		if o != msglog.Duplicate || second[i].Seq != first[i].Seq {
			t.Fatalf("retransmission %d: outcome %v, seq %d, want %d", i, o, second[i].Seq, first[i].Seq)
		}
	}
}

func testDupInBatch(t *testing.T, open Open) {
	l := openTemp(t, open)
	before := withPacket(msg("alice", "user/bob", "before"), 7, false)
	store(t, l, before)
	a := withPacket(msg("alice", "user/bob", "hello"), 1, false)
	b := withPacket(msg("alice", "user/bob", "hello"), 1, true)
	c := withPacket(msg("alice", "user/bob", "new"), 2, true) // DUP of one that never arrived
	d := withPacket(msg("alice", "user/bob", "new"), 2, true)
	e := withPacket(msg("alice", "user/bob", "before"), 7, true)
	wantOutcomes(t, appendAll(t, l, a, b, c, d, e),
		msglog.Stored, msglog.Duplicate, msglog.Stored, msglog.Duplicate, msglog.Duplicate)
	if b.Seq != a.Seq || d.Seq != c.Seq || e.Seq != before.Seq {
		t.Fatalf("seqs %v", seqs([]*msglog.Record{a, b, c, d, e}))
	}
	// What the batch brought is known to the next one, too.
	f := withPacket(msg("alice", "user/bob", "new"), 2, true)
	wantOutcomes(t, appendAll(t, l, f), msglog.Duplicate)
}

// Names that look alike, or hold bytes that a key may use, do not meet.
func testOddNames(t *testing.T, open Open) {
	l := openTemp(t, open)
	names := []string{"a", "a\x00", "a\x00\x01", "a\x00\xff", "a\xff", "\x00", "a\x00b", "ab", "", strings.Repeat("é", 40)}
	var all []*msglog.Record
	for i, n := range names {
		a := withPacket(msg("alice", "group/"+n, "x"), 1, false)
		a.Client = n
		b := withMid(msg("u"+n, "group/x", "x"), n+"m")
		all = append(all, a, b)
		store(t, l, a, b)
		if a.Prev != 0 {
			t.Fatalf("name %d: prev %d on a topic of its own", i, a.Prev)
		}
	}
	for i, n := range names {
		a := withPacket(msg("alice", "group/"+n, "x"), 1, true)
		a.Client = n
		b := withMid(msg("u"+n, "group/x", "x"), n+"m")
		wantOutcomes(t, appendAll(t, l, a, b), msglog.Duplicate, msglog.Duplicate)
		if a.Seq != all[2*i].Seq || b.Seq != all[2*i+1].Seq {
			t.Fatalf("name %d: duplicates of %d and %d, want %d and %d", i, a.Seq, b.Seq, all[2*i].Seq, all[2*i+1].Seq)
		}
		if n != "x" {
			wantRecords(t, readTopic(t, l, "group/"+n, 0, 1<<60), all[2*i:2*i+1])
		}
	}
}

// What an earlier version has stored, with a raw digest, is recognised when it comes again
// from a client that was told nothing before the upgrade.
func testRawDigest(t *testing.T, open Open) {
	l := openTemp(t, open)
	old := withMid(msg("alice", "user/bob", "hello"), "m1")
	old.Digest = msglog.RawDigest(old.To, old.Tail)
	packet := withPacket(msg("alice", "user/bob", "21.5"), 7, false)
	packet.Digest = msglog.RawDigest(packet.To, packet.Tail)
	store(t, l, old, packet)

	again := withMid(msg("alice", "user/bob", "hello"), "m1")
	other := withMid(msg("alice", "user/bob", "hello!"), "m1")
	wantOutcomes(t, appendAll(t, l, again), msglog.Duplicate)
	if again.Seq != old.Seq {
		t.Errorf("seq %d, want the first one's %d", again.Seq, old.Seq)
	}
	wantOutcomes(t, appendAll(t, l, other), msglog.Conflict)

	// Its tail has another form now.
	changed := withPacket(msg("alice", "user/bob", "21.5"), 7, true)
	changed.RawDigest = packet.Digest
	changed.Tail = []byte(`"type":"data","body":21.5}`)
	wantOutcomes(t, appendAll(t, l, changed), msglog.Duplicate)
}
