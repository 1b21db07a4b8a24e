package broker_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/broker"
	"mynah/broker/msglog"
	"mynah/broker/msglog/msglogtest"
	"mynah/broker/state"
	"mynah/internal/mqttest"
)

// mustThree returns three machines that share an order.
func mustThree(seed uint64) *msglogtest.Cluster {
	return msglogtest.NewCluster(seed,
		msglogtest.ClusterOptions(vfs.NewMem()), msglogtest.ClusterOptions(vfs.NewMem()), msglogtest.ClusterOptions(vfs.NewMem()))
}

// onNode has a broker use the log of a machine.
func onNode(n *msglogtest.Node) func(*broker.Config) {
	return func(cfg *broker.Config) {
		cfg.Log = msglog.Options{MemTableBytes: 1 << 20, Ballast: -1, MinFree: 1}
		cfg.OpenLog = func(_ string, opts msglog.Options) (msglog.Log, state.Store, error) {
			if err := n.OpenWith(opts); err != nil {
				return nil, nil, err
			}
			return n, n.State(), nil
		}
	}
}

// member is somebody of the group g who speaks MQTT 5 and keeps a session.
func member(tb testing.TB, subject string) mqttest.Options {
	tb.Helper()
	return v5(keep(user(tb, subject, "phone", "g")))
}

// ackedSeq returns the seq that an acknowledgement names.
func ackedSeq(tb testing.TB, ack packets.Packet) uint64 {
	tb.Helper()
	seq, err := strconv.ParseUint(seqOf(tb, ack), 10, 64)
	if err != nil {
		tb.Fatal(err)
	}
	return seq
}

// A message that is published at one of three brokers is delivered at all three, once and in
// one order, and acknowledged by the one that it was published at.
func TestThreeBrokers(t *testing.T) {
	t.Parallel()
	const each = 40
	cluster := mustThree(1)
	var addrs []string
	var subs []*mqttest.Client
	for i := range 3 {
		b := mustStart(t, t.TempDir(), onNode(cluster.Node(i)))
		addrs = append(addrs, b.MQTTAddr().String())
		sub := mqttest.Dial(t, addrs[i], member(t, fmt.Sprint("reader", i)))
		sub.Subscribe(1, "group/g")
		subs = append(subs, sub)
	}
	var mu sync.Mutex
	acked := map[uint64]string{}
	var writers []*mqttest.Client
	var wg sync.WaitGroup
	for i := range 3 {
		writer := mqttest.Dial(t, addrs[i], member(t, fmt.Sprint("writer", i)))
		writers = append(writers, writer)
		wg.Go(func() {
			for k := range each {
				body := fmt.Sprint("from ", i, ": ", k)
				ack := writer.PublishAcked("group/g", 1, fmt.Sprintf(`{"type":"text","body":%q,"mid":"m%d"}`, body, k))
				mu.Lock()
				acked[ackedSeq(t, ack)] = body
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(acked) != 3*each {
		t.Fatalf("%d messages have a seq of their own, want %d", len(acked), 3*each)
	}
	last := uint64(0)
	for i, sub := range subs {
		var prev uint64
		for range 3 * each {
			m := sub.ReceiveAcked()
			if m.Seq <= prev || m.Prev != prev || acked[m.Seq] != m.Body {
				t.Fatalf("reader %d: message %d with prev %d, %v, after %d; acknowledged was %q", i, m.Seq, m.Prev, m.Body, prev, acked[m.Seq])
			}
			prev = m.Seq
		}
		sub.ExpectNothing()
		last = prev
	}
	for _, w := range writers {
		w.ExpectNothing() // nobody else's acknowledgements
	}
	cluster.MustAgree(t, false) // each has sessions of its own

	// The same message at another broker is known there.
	elsewhere := mqttest.Dial(t, addrs[1], member(t, "writer0"))
	again := elsewhere.PublishAcked("group/g", 1, `{"type":"text","body":"from 0: 0","mid":"m0"}`)
	if acked[ackedSeq(t, again)] != "from 0: 0" {
		t.Errorf("it has the seq of %q", acked[ackedSeq(t, again)])
	}

	// One gets nothing for a while: its own publishers wait, all others go on, and then it
	// has what they have.
	cluster.Node(2).Pause(true)
	id := writers[2].Publish("group/g", 1, "held up")
	first := ackedSeq(t, writers[0].PublishAcked("group/g", 1, "at once"))
	if m := subs[0].ReceiveAcked(); m.Body == "at once" && m.Prev != last {
		t.Fatalf("message %d has prev %d, want %d", m.Seq, m.Prev, last)
	}
	writers[2].ExpectNothing()
	subs[2].ExpectNothing()
	cluster.Node(2).Pause(false)
	if ack := writers[2].Expect(packets.Puback); ack.PacketID != id {
		t.Fatalf("acknowledged is %d, want %d", ack.PacketID, id)
	}
	var bodies []string
	for range 2 {
		m := subs[2].ReceiveAcked()
		bodies = append(bodies, m.Body.(string)) //nolint:forcetypeassert // texts
		if m.Body == "at once" && m.Seq != first {
			t.Fatalf("message %d is %d elsewhere", m.Seq, first)
		}
	}
	if slices.Sort(bodies); !slices.Equal(bodies, []string{"at once", "held up"}) {
		t.Fatalf("reader 2 got %q", bodies)
	}
}

// A broker that was stopped goes on from where it was, and so do its sessions.
func TestBrokerResumesInOrder(t *testing.T) {
	t.Parallel()
	cluster := mustThree(2)
	dir := t.TempDir()
	a := mustStart(t, t.TempDir(), onNode(cluster.Node(0)))
	b := mustStart(t, dir, onNode(cluster.Node(1)))
	reader := mqttest.Dial(t, b.MQTTAddr().String(), member(t, "reader"))
	reader.Subscribe(1, "group/g")
	writer := mqttest.Dial(t, a.MQTTAddr().String(), member(t, "writer"))
	writer.PublishAcked("group/g", 1, "before")
	if m := reader.ReceiveAcked(); m.Body != "before" {
		t.Fatalf("got %v", m.Body)
	}
	reader.Sync()
	if err := b.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	for k := range 30 {
		writer.PublishAcked("group/g", 1, fmt.Sprint("while away ", k))
	}
	b = mustStart(t, dir, onNode(cluster.Node(1)))
	reader = mqttest.Dial(t, b.MQTTAddr().String(), member(t, "reader"))
	writer.PublishAcked("group/g", 1, "after")
	for k := range 30 {
		if m := reader.ReceiveAcked(); m.Body != fmt.Sprint("while away ", k) {
			t.Fatalf("got %v, want the message %d", m.Body, k)
		}
	}
	if m := reader.ReceiveAcked(); m.Body != "after" {
		t.Fatalf("got %v", m.Body)
	}
	reader.ExpectNothing()
}

// When it is never to be known whether a message was committed, its publisher is told: by a
// reason code, or, where the protocol has none, by the end of the connection.
func TestOutcomeUnknown(t *testing.T) {
	t.Parallel()
	cluster := mustThree(3)
	b := mustStart(t, t.TempDir(), onNode(cluster.Node(0)))
	addr := b.MQTTAddr().String()
	newer := mqttest.Dial(t, addr, member(t, "newer"))
	older := mqttest.Dial(t, addr, user(t, "older", "phone"))
	cluster.Node(0).Pause(true)
	newer.Publish("user/bob", 1, "hello")
	older.Publish("user/bob", 1, "hello")
	newer.ExpectNothing()
	older.ExpectNothing()
	if err := cluster.Node(0).Close(); err != nil {
		t.Fatal(err)
	}
	if ack := newer.Expect(packets.Puback); ack.ReasonCode != packets.ErrUnspecifiedError.Code {
		t.Errorf("reason code %#x", ack.ReasonCode)
	}
	older.ExpectEnd()
}

// mustUnpack unpacks an archive into a new folder.
func mustUnpack(tb testing.TB, dir, archive string) {
	tb.Helper()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		tb.Fatal(err)
	}
	if out, err := exec.CommandContext(tb.Context(), "tar", "-xzf", archive, "-C", dir).CombinedOutput(); err != nil {
		tb.Fatalf("%v: %s", err, out)
	}
}

// A log, sessions and retained messages that were written before there were entries are
// taken over: the broker was killed while bob was connected and had acknowledged nothing.
func TestFormat1(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mustUnpack(t, dir+"/log", "msglog/testdata/format1.tar.gz")
	b := mustStart(t, dir, nil)
	addr := b.MQTTAddr().String()
	bob := mqttest.Dial(t, addr, keep(user(t, "bob", "phone", "g")))
	alice := mqttest.Dial(t, addr, member(t, "alice"))
	again := alice.PublishAcked("user/bob", 1, `{"type":"text","body":"one","mid":"m1"}`)
	var seqs []uint64
	for _, want := range []string{"one", "two", "three"} {
		m := bob.ReceiveAcked()
		if m.Body != want {
			t.Fatalf("bob gets %v, want %s", m.Body, want)
		}
		seqs = append(seqs, m.Seq)
	}
	if ackedSeq(t, again) != seqs[0] {
		t.Errorf("the first message has come again as %d, want %d", ackedSeq(t, again), seqs[0])
	}
	bob.ExpectNothing()
	if next := ackedSeq(t, alice.PublishAcked("user/bob", 1, "four")); next != seqs[2]+1 {
		t.Errorf("the next message is %d after %d", next, seqs[2])
	}
	d := mqttest.Dial(t, addr, plain(t, "d"))
	d.Subscribe(1, "plant/x")
	if m := d.ReceivePlain(); string(m.Payload) != "21.5" || !m.FixedHeader.Retain {
		t.Errorf("retained is %q", m.Payload)
	}
}
