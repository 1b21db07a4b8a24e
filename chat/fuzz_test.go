package chat_test

import (
	"encoding/json"
	"errors"
	"testing"

	"mynah/chat"
)

// longestSeed keeps the long payloads of the corpus out of the fuzzer, which would
// spend its time on shortening them. TestHostile has them all.
const longestSeed = 1 << 10

// FuzzParse looks for a payload on which Parse panics, differs from the reading
// of the rules in reference_test.go, or lets through what does not render to a
// message with exactly the broker's fields. Its seeds are the hostile corpus.
func FuzzParse(f *testing.F) {
	for _, h := range mustHostile(f) {
		if len(h.Payload) <= longestSeed {
			f.Add(h.Payload, h.System)
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte, system bool) {
		checkParse(t, chat.Limits{}, payload, system)
		// Small limits are reached by small inputs.
		checkParse(t, chat.Limits{Payload: 1 << 10, Depth: 3, Rendered: 700}, payload, system)
	})
}

// FuzzParseEnvelope looks for bytes on which ParseEnvelope panics, or of which it
// makes an object that is no JSON or still has prev.
func FuzzParseEnvelope(f *testing.F) {
	for _, h := range mustHostile(f) {
		if len(h.Payload) > longestSeed {
			continue
		}
		d, err := chat.Limits{}.Parse(h.Payload, h.System)
		if err != nil {
			f.Add(h.Payload)
			continue
		}
		m := chat.Message{Seq: testSeq, From: testFrom, To: testTo, TS: testTS, Type: d.Type, Tail: d.Tail}
		f.Add(m.AppendEnvelope(nil, testPrev))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := chat.ParseEnvelope(b)
		if err != nil {
			if !errors.Is(err, chat.ErrEnvelope) {
				t.Errorf("the error is no ErrEnvelope: %v", err)
			}
			return
		}
		if nesting(b) < 10000 && !json.Valid(b) {
			t.Fatalf("accepted what is no JSON: %.300q", b)
		}
		again, err := chat.ParseEnvelope(e.Object)
		if err != nil {
			t.Fatalf("the object %.300q is no envelope: %v", e.Object, err)
		}
		if again.Prev != 0 {
			t.Errorf("prev is still there: %.300q", e.Object)
		}
		if e.Prev = 0; again.Seq != e.Seq || again.From != e.From || again.To != e.To || again.TS != e.TS ||
			again.Type != e.Type || again.Mid != e.Mid || string(again.Object) != string(e.Object) {
			t.Errorf("read again: %+v, was %+v", again, e)
		}
	})
}
