package chat_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"mynah/chat"
)

// hostile is a line of testdata/hostile.jsonl: a payload and what becomes of it
// under the default limits. The tests of other packages send the same payloads
// through the broker into PostgreSQL.
type hostile struct {
	Name    string    `json:"name"`
	Payload []byte    `json:"payload"` // base64 in the file
	Class   string    `json:"class"`   // text, message, data, binary (forms 3, 1, 2, 4) or refused
	Type    string    `json:"type"`    // the message's type, unless refused
	Code    chat.Code `json:"code"`    // if refused
	System  bool      `json:"system"`  // published by the system
}

func mustHostile(tb testing.TB) []hostile {
	tb.Helper()
	file, err := os.ReadFile("testdata/hostile.jsonl")
	if err != nil {
		tb.Fatal(err)
	}
	var all []hostile
	lines := bufio.NewScanner(bytes.NewReader(file))
	lines.Buffer(nil, len(file))
	for lines.Scan() {
		var h hostile
		d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(&h); err != nil {
			tb.Fatalf("line %d: %v", len(all)+1, err)
		}
		all = append(all, h)
	}
	if len(all) == 0 {
		tb.Fatal("the corpus is empty")
	}
	return all
}

// TestHostile guards every rule of the message format, one payload each: what is
// refused, what is taken for which form, and that the naive reading of the rules
// in reference_test.go agrees.
func TestHostile(t *testing.T) {
	t.Parallel()
	for _, h := range mustHostile(t) {
		t.Run(strings.ReplaceAll(h.Name, "/", "|"), func(t *testing.T) {
			t.Parallel()
			got := checkParse(t, chat.Limits{}, h.Payload, h.System)
			if got.class != h.Class || got.typ != h.Type || got.code != h.Code {
				t.Errorf("Parse(%.200q): %s %s %s, want %s %s %s",
					h.Payload, got.class, got.typ, got.code, h.Class, h.Type, h.Code)
			}
		})
	}
}
