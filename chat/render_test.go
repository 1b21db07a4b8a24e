package chat_test

import (
	"encoding/json"
	"errors"
	"testing"

	"mynah/chat"
)

// TestAppendEnvelope guards the order and the bytes of what subscribers receive
// and of what is archived.
func TestAppendEnvelope(t *testing.T) {
	t.Parallel()
	m := chat.Message{
		Seq: 1764000000000042, From: "alice", To: "group/42", TS: 1764000000123, Type: "text", Mid: "5f1c",
		Tail: []byte(`"type":"text","body":"hello","mid":"5f1c"}`),
	}
	const envelope = `{"seq":1764000000000042,"prev":1764000000000017,"from":"alice","to":"group/42","ts":1764000000123,` +
		`"type":"text","body":"hello","mid":"5f1c"}`
	if got := string(m.AppendEnvelope([]byte("x"), 1764000000000017)); got != "x"+envelope {
		t.Errorf("got  %s\nwant %s", got, envelope)
	}
	const archived = `{"seq":1764000000000042,"from":"alice","to":"group/42","ts":1764000000123,` +
		`"type":"text","body":"hello","mid":"5f1c"}`
	if got := string(m.AppendArchived(nil)); got != archived {
		t.Errorf("got  %s\nwant %s", got, archived)
	}
}

// TestAppendEnvelopeHostileNames guards that a from or to that should never have
// come so far cannot end its string and write a field of its own.
func TestAppendEnvelopeHostileNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{`a","seq":1,"x":"`, `\`, "a\x00b", "a\nb", "\xff", "大", `"`} {
		m := chat.Message{Seq: 7, From: name, To: name, TS: 1, Tail: []byte(`"type":"text","body":1}`)}
		for _, b := range [][]byte{m.AppendEnvelope(nil, 3), m.AppendArchived(nil)} {
			var got struct {
				Seq      uint64
				From, To string
			}
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatalf("%q: %v", b, err)
			}
			want := name
			if name == "\xff" {
				want = "\ufffd"
			}
			if got.Seq != 7 || got.From != want || got.To != want {
				t.Errorf("%q: %+v", b, got)
			}
		}
	}
}

// TestGapNotice guards the notice of trimmed messages as it is described in
// schema/wire.
func TestGapNotice(t *testing.T) {
	t.Parallel()
	m := chat.GapNotice("group/42", 1764000000000042, 1764000000000099, 1764000000123)
	const want = `{"seq":0,"prev":0,"from":"","to":"group/42","ts":1764000000123,` +
		`"type":"notice.gap","body":{"from":1764000000000042,"to":1764000000000099}}`
	b := m.AppendEnvelope(nil, 0)
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	e, err := chat.ParseEnvelope(b)
	if err != nil || e.Type != chat.TypeGap || e.Seq != 0 || m.Type != chat.TypeGap {
		t.Errorf("%+v, %v", e, err)
	}
}

// TestParseEnvelope guards that a receiver reads the fields wherever they stand,
// by their exact names, and that prev alone is taken out.
func TestParseEnvelope(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		envelope string
		want     chat.Envelope
		object   string
	}{
		{
			`{"seq":5,"prev":4,"from":"alice","to":"group/42","ts":9,"type":"x-a","body":{"prev":1},"mid":"m\u0031"}`,
			chat.Envelope{Seq: 5, Prev: 4, From: "alice", To: "group/42", TS: 9, Type: "x-a", Mid: "m1"},
			`{"seq":5,"from":"alice","to":"group/42","ts":9,"type":"x-a","body":{"prev":1},"mid":"m\u0031"}`,
		},
		{ // as jsonb prints it
			`{"to": "user/bob", "ts": 9, "seq": 5, "body": [1, " "], "from": "alice", "type": "text"}`,
			chat.Envelope{Seq: 5, From: "alice", To: "user/bob", TS: 9, Type: "text"},
			`{"to":"user/bob","ts":9,"seq":5,"body":[1," "],"from":"alice","type":"text"}`,
		},
		{ // a name in another case is another name
			`{"seq":5,"prev":4,"from":"alice","to":"user/bob","ts":9,"type":"text","From":"eve","SEQ":1,"Mid":"x","Prev":7}`,
			chat.Envelope{Seq: 5, Prev: 4, From: "alice", To: "user/bob", TS: 9, Type: "text"},
			`{"seq":5,"from":"alice","to":"user/bob","ts":9,"type":"text","From":"eve","SEQ":1,"Mid":"x","Prev":7}`,
		},
		{
			`{"prev":4,"seq":5,"from":"","to":"user/bob","ts":9,"type":"notice.a"}`,
			chat.Envelope{Seq: 5, Prev: 4, To: "user/bob", TS: 9, Type: "notice.a"},
			`{"seq":5,"from":"","to":"user/bob","ts":9,"type":"notice.a"}`,
		},
	} {
		e, err := chat.ParseEnvelope([]byte(c.envelope))
		if err != nil {
			t.Errorf("%s: %v", c.envelope, err)
			continue
		}
		if string(e.Object) != c.object {
			t.Errorf("object %s\nwant   %s", e.Object, c.object)
		}
		e.Object = nil
		if e.Seq != c.want.Seq || e.Prev != c.want.Prev || e.From != c.want.From || e.To != c.want.To ||
			e.TS != c.want.TS || e.Type != c.want.Type || e.Mid != c.want.Mid {
			t.Errorf("%+v\nwant %+v", e, c.want)
		}
	}
}

// TestParseEnvelopeOwnsItsMemory guards the archiver, which keeps envelopes
// longer than the client library keeps the packet.
func TestParseEnvelopeOwnsItsMemory(t *testing.T) {
	t.Parallel()
	b := []byte(`{"seq":5,"prev":4,"from":"alice","to":"user/bob","ts":9,"type":"x-a","mid":"m"}`)
	e, err := chat.ParseEnvelope(b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] = 'X'
	}
	const object = `{"seq":5,"from":"alice","to":"user/bob","ts":9,"type":"x-a","mid":"m"}`
	if e.From != "alice" || e.To != "user/bob" || e.Type != "x-a" || e.Mid != "m" || string(e.Object) != object {
		t.Errorf("it changed with the packet: %+v %s", e, e.Object)
	}
}

// TestParseEnvelopeRefuses guards that what is no message of the broker is told
// from one; the archiver makes a dead letter of it.
func TestParseEnvelopeRefuses(t *testing.T) {
	t.Parallel()
	for _, b := range []string{
		``, `x`, `[]`, `{}`, "\xff", `{"seq":5`,
		`{"prev":4,"from":"a","to":"user/b","ts":9,"type":"text"}`,
		`{"seq":5,"to":"user/b","ts":9,"type":"text"}`,
		`{"seq":5,"from":"a","ts":9,"type":"text"}`,
		`{"seq":5,"from":"a","to":"user/b","type":"text"}`,
		`{"seq":5,"from":"a","to":"user/b","ts":9}`,
		`{"seq":"5","from":"a","to":"user/b","ts":9,"type":"text"}`,
		`{"seq":-5,"from":"a","to":"user/b","ts":9,"type":"text"}`,
		`{"seq":5.0,"from":"a","to":"user/b","ts":9,"type":"text"}`,
		`{"seq":9007199254740992,"from":"a","to":"user/b","ts":9,"type":"text"}`,
		`{"seq":5,"prev":null,"from":"a","to":"user/b","ts":9,"type":"text"}`,
		`{"seq":5,"from":1,"to":"user/b","ts":9,"type":"text"}`,
		`{"seq":5,"from":"a","to":{},"ts":9,"type":"text"}`,
		`{"seq":5,"from":"a","to":"user/b","ts":9,"type":null}`,
		`{"seq":5,"from":"a","to":"user/b","ts":9,"type":"text","mid":1}`,
		`{"seq":5,"from":"a","from":"b","to":"user/b","ts":9,"type":"text"}`,
		`{"seq":5,"from":"a","fro\u006d":"b","to":"user/b","ts":9,"type":"text"}`,
		`{"seq":5,"from":"a","to":"user/b","ts":9,"type":"text","body":"\u0000"}`,
		`{"seq":5,"from":"a","to":"user/b","ts":9,"type":"text","body":1e999}`,
	} {
		if e, err := chat.ParseEnvelope([]byte(b)); !errors.Is(err, chat.ErrEnvelope) {
			t.Errorf("ParseEnvelope(%q): %+v, %v", b, e, err)
		}
	}
}
