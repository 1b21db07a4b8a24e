package wire_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"

	"mynah/chat"
	"mynah/schema/wire"
)

func mustCompile(tb testing.TB, schema []byte) *jsonschema.Schema {
	tb.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		tb.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		tb.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func validate(tb testing.TB, s *jsonschema.Schema, document []byte) error {
	tb.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	if err != nil {
		tb.Fatalf("%.300q: %v", document, err)
	}
	return s.Validate(v)
}

// TestMessages guards that the schema describes whatever the broker may render:
// every payload of the hostile corpus that is accepted.
func TestMessages(t *testing.T) {
	t.Parallel()
	schema := mustCompile(t, wire.Message)
	file, err := os.ReadFile("../../chat/testdata/hostile.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	accepted := 0
	lines := bufio.NewScanner(bytes.NewReader(file))
	lines.Buffer(nil, len(file))
	for lines.Scan() {
		var h struct {
			Name    string
			Payload []byte
			System  bool
		}
		if err := json.Unmarshal(lines.Bytes(), &h); err != nil {
			t.Fatal(err)
		}
		d, err := chat.Limits{}.Parse(h.Payload, h.System)
		if err != nil {
			continue
		}
		accepted++
		m := chat.Message{Seq: 1764000000000042, From: "alice", To: "group/42", TS: 1764000000123, Tail: d.Tail}
		if err := validate(t, schema, m.AppendEnvelope(nil, 1764000000000017)); err != nil {
			t.Errorf("%s: %v", h.Name, err)
		}
		signal := chat.Message{From: "alice", To: "user/bob/signal", TS: 1764000000123, Tail: d.Tail}
		if err := validate(t, schema, signal.AppendEnvelope(nil, 0)); err != nil {
			t.Errorf("%s, as a signal: %v", h.Name, err)
		}
	}
	if accepted == 0 {
		t.Error("no payload of the corpus is accepted")
	}
	gap := chat.GapNotice("group/42", 1764000000000042, 1764000000000099, 1764000000123)
	if err := validate(t, schema, gap.AppendEnvelope(nil, 0)); err != nil {
		t.Errorf("notice.gap: %v", err)
	}
}

// TestNotMessages guards that the schema would notice a broker that sends
// something else.
func TestNotMessages(t *testing.T) {
	t.Parallel()
	schema := mustCompile(t, wire.Message)
	const good = `{"seq":5,"prev":4,"from":"alice","to":"group/42","ts":1,"type":"text","body":"x"}`
	if err := validate(t, schema, []byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{`"seq":5,`, ``},
		{`"prev":4,`, ``},
		{`"from":"alice",`, ``},
		{`"to":"group/42",`, ``},
		{`"ts":1,`, ``},
		{`"type":"text",`, ``},
		{`"seq":5`, `"seq":"5"`},
		{`"seq":5`, `"seq":9007199254740992`},
		{`"seq":5`, `"seq":0`},
		{`"prev":4`, `"prev":-1`},
		{`"alice"`, `""`},
		{`"alice"`, `"a b"`},
		{`"group/42"`, `"group/"`},
		{`"group/42"`, `"group/42/signal"`},
		{`"group/42"`, `"room/42"`},
		{`"ts":1`, `"ts":1.5`},
		{`"text"`, `"Text"`},
		{`"body":"x"`, `"mid":""`},
		{`"body":"x"`, `"mid":7`},
		{`"body":"x"`, `"reply_to":0`},
		{`"body":"x"`, `"mentions":["*","bob"]`},
		{`"body":"x"`, `"expires":"soon"`},
		{`"body":"x"`, `"ext":[]`},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good || validate(t, schema, []byte(bad)) == nil {
			t.Errorf("the schema accepts %s", bad)
		}
	}
}

// TestErrors guards that the schema of errors describes what a refusal renders
// to, whatever is in the topic, and lists the codes there are.
func TestErrors(t *testing.T) {
	t.Parallel()
	schema := mustCompile(t, wire.Error)
	listed := string(wire.Error)
	for _, code := range []chat.Code{
		chat.CodeBadMessage, chat.CodeTooLarge, chat.CodeBadTopic, chat.CodeNotAllowed, chat.CodeNotMember,
		chat.CodeMuted, chat.CodeConflict, chat.CodeRateLimited, chat.CodeLogFull, chat.CodeUnavailable,
	} {
		payload := chat.Refuse(code, "because").Payload("group/\xff\x00\"", "m")
		if err := validate(t, schema, payload); err != nil {
			t.Errorf("%s: %v", payload, err)
		}
		if !strings.Contains(listed, fmt.Sprintf("%q", code)) {
			t.Errorf("the schema does not list %s", code)
		}
	}
	for _, bad := range []string{
		`{}`,
		`{"code":"","topic":"a","mid":"","reason":"x"}`,
		`{"code":"muted","topic":"a","mid":"","reason":""}`,
		`{"code":"muted","topic":"a","reason":"x"}`,
	} {
		if validate(t, schema, []byte(bad)) == nil {
			t.Errorf("the schema accepts %s", bad)
		}
	}
}

// TestPresence guards the schema of presence against being too wide or too
// narrow.
func TestPresence(t *testing.T) {
	t.Parallel()
	schema := mustCompile(t, wire.Presence)
	for document, want := range map[string]bool{
		`{"user":"alice","online":true,"last_seen":1764000000123}`:   true,
		`{"user":"alice","online":false,"last_seen":1764000000123}`:  true,
		`{"user":"alice","online":true}`:                             false,
		`{"user":"","online":true,"last_seen":1764000000123}`:        false,
		`{"user":"alice","online":1,"last_seen":1764000000123}`:      false,
		`{"user":"alice","online":true,"last_seen":"2026-11-22"}`:    false,
		`{"user":"alice","online":true,"last_seen":1764000000123.5}`: false,
	} {
		if err := validate(t, schema, []byte(document)); (err == nil) != want {
			t.Errorf("%s: %v", document, err)
		}
	}
}

// TestExamples guards that the examples in the schemas are examples of them.
func TestExamples(t *testing.T) {
	t.Parallel()
	for _, schema := range [][]byte{wire.Message, wire.Error, wire.Presence} {
		var doc struct {
			Title    string
			Examples []json.RawMessage
		}
		if err := json.Unmarshal(schema, &doc); err != nil {
			t.Fatal(err)
		}
		if len(doc.Examples) == 0 {
			t.Errorf("%s has no example", doc.Title)
		}
		for _, example := range doc.Examples {
			if err := validate(t, mustCompile(t, schema), example); err != nil {
				t.Errorf("%s: %s: %v", doc.Title, example, err)
			}
		}
	}
}

// TestAsyncAPI guards that the document is YAML, names every topic of the
// protocol and every schema, and refers to nothing that is not there. (That it is
// AsyncAPI 3.0 was checked with @asyncapi/parser.)
func TestAsyncAPI(t *testing.T) {
	t.Parallel()
	var doc map[string]any
	if err := yaml.Unmarshal(wire.AsyncAPI, &doc); err != nil {
		t.Fatal(err)
	}
	if doc["asyncapi"] != "3.0.0" {
		t.Errorf("asyncapi: %v", doc["asyncapi"])
	}
	addresses := map[string]bool{}
	kinds := map[chat.Kind]bool{}
	for name, channel := range doc["channels"].(map[string]any) {
		address, ok := channel.(map[string]any)["address"].(string)
		if !ok {
			if name != "other" {
				t.Errorf("channel %s has no address", name)
			}
			kinds[chat.KindPlain] = true
			continue
		}
		addresses[address] = true
		kinds[chat.ParseTopic(strings.ReplaceAll(address, "{id}", "x")).Kind] = true
	}
	for _, address := range []string{
		"user/{id}", "group/{id}", "group/+", "user/{id}/signal", "group/{id}/signal", "group/+/signal",
		"user/{id}/error", "presence/{id}", "$SYS/#", chat.RenewTopic,
	} {
		if !addresses[address] {
			t.Errorf("no channel has the address %s", address)
		}
	}
	for kind := chat.KindPlain; kind <= chat.KindReserved; kind++ {
		if !kinds[kind] {
			t.Errorf("no channel is of the topic kind %d", kind)
		}
	}
	refs := map[string]bool{}
	collectRefs(doc, refs)
	for ref := range refs {
		if path, ok := strings.CutPrefix(ref, "#/"); ok {
			if !resolves(doc, strings.Split(path, "/")) {
				t.Errorf("%s is not there", ref)
			}
		} else if _, err := os.Stat(ref); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{"./message.schema.json", "./error.schema.json", "./presence.schema.json"} {
		if !refs[ref] {
			t.Errorf("nothing refers to %s", ref)
		}
	}
}

// TestAsyncAPIExamples guards that the examples of the document's messages are
// what their schemas say.
func TestAsyncAPIExamples(t *testing.T) {
	t.Parallel()
	var doc struct {
		Components struct {
			Messages map[string]struct {
				Examples []struct{ Payload any }
			}
		}
	}
	if err := yaml.Unmarshal(wire.AsyncAPI, &doc); err != nil {
		t.Fatal(err)
	}
	for name, schema := range map[string][]byte{"message": wire.Message, "error": wire.Error, "presence": wire.Presence} {
		examples := doc.Components.Messages[name].Examples
		if len(examples) == 0 {
			t.Errorf("message %s has no example", name)
		}
		for _, example := range examples {
			document, err := json.Marshal(example.Payload)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate(t, mustCompile(t, schema), document); err != nil {
				t.Errorf("%s: %v", document, err)
			}
		}
	}
}

func collectRefs(node any, refs map[string]bool) {
	switch node := node.(type) {
	case map[string]any:
		if ref, ok := node["$ref"].(string); ok {
			refs[ref] = true
		}
		for _, child := range node {
			collectRefs(child, refs)
		}
	case []any:
		for _, child := range node {
			collectRefs(child, refs)
		}
	}
}

func resolves(node any, path []string) bool {
	for _, name := range path {
		m, ok := node.(map[string]any)
		if !ok {
			return false
		}
		if node, ok = m[name]; !ok {
			return false
		}
	}
	return true
}
