package chat_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"unicode/utf8"

	"mynah/chat"
)

// TestErrorPayload guards what a client reads in user/<me>/error, and that no
// topic or mid, whatever is in it, can break out of the object.
func TestErrorPayload(t *testing.T) {
	t.Parallel()
	refusal := chat.Refuse(chat.CodeNotMember, "you are not a member of this group")
	const want = `{"code":"not_member","topic":"group/42","mid":"5f1c","reason":"you are not a member of this group"}`
	if got := string(refusal.Payload("group/42", "5f1c")); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for hostile, want := range map[string]string{
		"":                       "",
		`","code":"ok","x":"`:    `","code":"ok","x":"`,
		"a\x00\x1f\n\"\\b":       "a\x00\x1f\n\"\\b",
		"\xff\xfea\xc0":          "\ufffd\ufffda\ufffd",
		"\xed\xa0\x80":           "\ufffd\ufffd\ufffd",
		"cut \xe5\xa4":           "cut \ufffd\ufffd",
		"大\u2028\ufffd👋":         "大\u2028\ufffd👋",
		"group/\U0010ffff\u0085": "group/\U0010ffff\u0085",
	} {
		b := refusal.Payload(hostile, hostile)
		var got map[string]string
		if err := json.Unmarshal(b, &got); err != nil || !utf8.Valid(b) {
			t.Fatalf("%q: %v", b, err)
		}
		if len(got) != 4 || got["topic"] != want || got["mid"] != want || got["code"] != "not_member" || got["reason"] != refusal.Reason {
			t.Errorf("topic %q: %v", hostile, got)
		}
	}
}

// TestErrorIsReadable guards the sentence that MQTT 5 reason strings carry.
func TestErrorIsReadable(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("publish: %w", chat.Refuse(chat.CodeMuted, "you may not speak until tomorrow"))
	if got, want := err.Error(), "publish: muted: you may not speak until tomorrow"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
