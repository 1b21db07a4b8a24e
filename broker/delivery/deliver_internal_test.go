package delivery

import (
	"testing"
	"time"

	"mynah/broker/msglog"
	"mynah/chat"
	"mynah/internal/waitfor"
)

// A session that has had some messages of a run gets the others alone.
func TestRunOfWhichSomeWasSent(t *testing.T) {
	t.Parallel()
	e := mustEngine(t, Config{})
	s, out := mustJoin(t, e, "alice", 1, time.Hour)
	waitfor.MustHold(t, "the session is live", s.Live)
	recs := make([]*msglog.Record, 2)
	for i := range recs {
		recs[i] = &msglog.Record{QoS: 1, Message: chat.Message{
			From: "bob", To: "group/room", TS: 1, Type: "text", Tail: []byte(`"type":"text","body":"x"}`),
		}}
	}
	p, err := e.log.(msglog.Log).Propose(&msglog.Entry{Records: recs})
	if err == nil {
		_, err = p.Wait()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Mu.Lock()
	s.pos = recs[0].Seq
	s.Mu.Unlock()
	e.Deliver(recs)
	waitfor.MustHold(t, "the second message", func() bool { return out.has(recs[1]) })
	if out.has(recs[0]) {
		t.Error("the first message was sent though the session had had it")
	}
}
