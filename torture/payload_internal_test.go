package main

import (
	"encoding/json"
	"math/rand/v2"
	"testing"

	"mynah/chat"
	"mynah/torture/ledger"
)

// What the ledger expects of a message must be what PROTOCOL.md makes of its
// payload: a wrong expectation would count good messages as missing. It is
// compared with the product's own parser, which has tests of its own.
func TestWriterKnowsWhatIsStored(t *testing.T) {
	t.Parallel()
	for _, mid := range []bool{true, false} {
		w := &writer{subject: "p1", qos: 1, mid: mid, rnd: rand.New(rand.NewPCG(1, 1))} //nolint:gosec // repeatable
		seen := map[uint64]bool{}
		types := map[string]bool{}
		for range 500 {
			key, payload, m := w.next("group/g0", 5)
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
