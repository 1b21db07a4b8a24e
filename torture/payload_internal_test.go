package main

import (
	"encoding/json"
	"math/rand/v2"
	"testing"

	"mynah/chat"
	"mynah/torture/ledger"
)

// The ledger's expectation of a stored message must follow PROTOCOL.md. Guards
// against a wrong expectation, which would count correct messages as missing.
// It is compared with the product's parser, which has its own tests.
func TestWriterKnowsWhatIsStored(t *testing.T) {
	t.Parallel()
	for _, mid := range []bool{true, false} {
		w := &payloadMaker{subject: "p1", qos: 1, mid: mid, rnd: rand.New(rand.NewPCG(1, 1))} //nolint:gosec // repeatable
		seen := map[uint64]bool{}
		types := map[string]bool{}
		for range 500 {
			key, payload, m := w.nextMessage("group/g0", 5)
			draft, err := chat.Limits{}.Parse(payload, false)
			if err != nil {
				t.Fatalf("%q: %v", payload, err)
			}
			types[draft.Type] = true
			stored := append([]byte(`{"seq":5,"from":"p1","to":"group/g0","ts":1,`), draft.Tail...)
			if !json.Valid(stored) {
				t.Fatalf("not JSON: %s", stored)
			}
			c, err := ledger.ReadEnvelope(stored, true)
			if err != nil {
				t.Fatal(err)
			}
			if c.Key != key || c.Digest != m.Digest || draft.Mid != m.Mid || (m.Mid != "") != mid {
				t.Fatalf("%q is stored as %s: key %q, want %q; mid %q, want %q", payload, stored, c.Key, key, draft.Mid, m.Mid)
			}
			if seen[m.Digest] {
				t.Fatalf("two messages with the same content: %q", payload)
			}
			seen[m.Digest] = true
		}
		if !mid && len(types) < 3 || mid && len(types) < 2 {
			t.Errorf("only messages of the types %v", types)
		}
	}
}
