package chat_test

import (
	"bytes"
	stdcmp "cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"mynah/chat"
)

// verdict is what a payload is taken for.
type verdict struct {
	class  string // text, message, data, binary or refused
	typ    string
	code   chat.Code
	fields map[string]any // type, body and what else the client's message has
}

// reference reads the rules of PROTOCOL.md the slow and obvious way, with
// encoding/json. It does not know the limit of the rendered message.
func reference(l chat.Limits, payload []byte, system bool) verdict {
	refused := verdict{class: "refused", code: chat.CodeBadMessage}
	switch {
	case len(payload) > l.Payload:
		return verdict{class: "refused", code: chat.CodeTooLarge}
	case !utf8.Valid(payload):
		return verdict{class: "binary", typ: "binary", fields: map[string]any{
			"type": "binary", "body": base64.StdEncoding.EncodeToString(payload),
		}}
	}
	if len(payload) == 0 {
		return refused
	}
	members, ok := topMembers(payload)
	if value, is := otherValue(payload); is {
		storable := nesting(payload) <= l.Depth && escapesStorable(payload) && numbersStorable(payload)
		if _, lone := value.(json.Number); storable {
			return verdict{class: "data", typ: "data", fields: map[string]any{"type": "data", "body": value}}
		} else if !lone {
			return refused
		}
	}
	if !ok {
		if bytes.ContainsRune(payload, 0) {
			return refused
		}
		return verdict{class: "text", typ: "text", fields: map[string]any{"type": "text", "body": string(payload)}}
	}
	if nesting(payload) > l.Depth || !escapesStorable(payload) || !numbersStorable(payload) {
		return refused
	}
	count := map[string]int{}
	fields := map[string]any{}
	stringType := false
	for _, m := range members {
		count[m.name]++
		fields[m.name] = m.value
		if _, ok := m.value.(string); ok && m.name == "type" {
			stringType = true
		}
	}
	if count["body"] == 0 && !stringType {
		return verdict{class: "data", typ: "data", fields: map[string]any{"type": "data", "body": fields}}
	}
	for _, n := range count {
		if n > 1 {
			return refused
		}
	}
	for _, known := range []string{"seq", "prev", "from", "to", "ts", "type"} {
		for name := range fields {
			if name != known && strings.EqualFold(name, known) {
				return refused
			}
		}
		if known != "type" {
			delete(fields, known)
		}
	}
	if _, ok := fields["type"]; !ok {
		fields["type"] = "text"
	}
	for name, value := range fields {
		if !kindOK(name, value, system) {
			return refused
		}
	}
	if !changeOK(fields) {
		return refused
	}
	return verdict{class: "message", typ: fields["type"].(string), fields: fields}
}

// otherValue returns the value of a text that is one JSON value, but neither an object nor
// a string.
func otherValue(text []byte) (value any, ok bool) {
	trimmed := bytes.TrimLeft(text, " \t\r\n")
	if len(trimmed) == 0 || trimmed[0] == '{' || trimmed[0] == '"' || !wellFormed(text) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&value); err != nil {
		value = []any{} // nested too deeply for encoding/json, and so refused
	}
	return value, true
}

// changeOK reports whether a message has the fields that its type needs.
func changeOK(fields map[string]any) bool {
	seq := func(name string) bool { return kindOK("reply_to", fields[name], false) }
	flag := func() bool {
		_, ok := fields["remove"].(bool)
		return ok || !slices.Contains(slices.Collect(maps.Keys(fields)), "remove")
	}
	switch fields["type"] {
	case "read":
		return seq("upto")
	case "recall":
		return seq("of")
	case "edit":
		return seq("of") && fields["body"] != nil
	case "reaction":
		key, _ := fields["key"].(string)
		return seq("of") && flag() && len(key) <= 64 && keyPattern.MatchString(key) &&
			strings.TrimSpace(key) == key && shownPattern.MatchString(key) && !blankPattern.MatchString(key)
	case "pin":
		return seq("of") && flag()
	}
	return true
}

var (
	keyPattern   = regexp.MustCompile(`^[\p{L}\p{M}\p{N}\p{P}\p{S}\x{200D}\x{E0020}-\x{E007F} ]+$`)
	shownPattern = regexp.MustCompile(`[\p{L}\p{N}\p{P}\p{S}]`)
	blankPattern = regexp.MustCompile(`[\x{115F}\x{1160}\x{3164}\x{FFA0}\x{2800}]`)
)

// wantChange returns what a draft's Change is to be.
func wantChange(fields map[string]any) (c chat.Change) {
	seq := func(name string) uint64 {
		n, _ := fields[name].(json.Number)
		u, _ := strconv.ParseUint(string(n), 10, 64)
		return u
	}
	switch fields["type"] {
	case "read":
		c.Upto = seq("upto")
	case "reaction":
		c.Key, _ = fields["key"].(string)
		fallthrough
	case "pin":
		c.Remove, _ = fields["remove"].(bool)
		fallthrough
	case "recall", "edit":
		c.Of = seq("of")
	}
	return c
}

// grownInJSONB returns by how many bytes jsonb makes numbers longer, which knows no
// exponents.
func grownInJSONB(tb testing.TB, text []byte) (grown int) {
	tb.Helper()
	for _, n := range numberLiteral.FindAllSubmatch(stringLiteral.ReplaceAll(text, []byte(`""`)), -1) {
		exponent, err := strconv.Atoi("0" + strings.TrimLeft(string(n[3]), "-+"))
		if err != nil {
			tb.Fatalf("%s: %v", n[0], err)
		}
		whole, fraction := string(n[1]), string(n[2])
		if strings.HasPrefix(string(n[3]), "-") {
			whole = strings.Repeat("0", exponent) + whole
			whole, fraction = whole[:len(whole)-exponent], whole[len(whole)-exponent:]+fraction
		} else {
			fraction += strings.Repeat("0", max(exponent-len(fraction), 0))
			whole, fraction = whole+fraction[:exponent], fraction[exponent:]
			if len(n[2]) <= exponent {
				fraction = ""
			}
		}
		rendered := len(stdcmp.Or(strings.TrimLeft(whole, "0"), "0"))
		if fraction != "" {
			rendered += 1 + len(fraction)
		}
		grown += max(rendered-len(strings.TrimPrefix(string(n[0]), "-")), 0)
	}
	return grown
}

type member struct {
	name  string
	value any // numbers as json.Number
}

// topMembers returns the members of a text that is one JSON object.
func topMembers(text []byte) ([]member, bool) {
	if trimmed := bytes.TrimLeft(text, " \t\r\n"); len(trimmed) == 0 || trimmed[0] != '{' || !wellFormed(text) {
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if _, err := d.Token(); err != nil {
		return nil, false
	}
	var all []member
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, false
		}
		m := member{name: name.(string)}
		// encoding/json gives up at a depth of 10,000, where all is refused anyway.
		if err := d.Decode(&m.value); err != nil {
			break
		}
		all = append(all, m)
	}
	return all, true
}

// wellFormed is json.Valid without its limit of depth.
func wellFormed(text []byte) bool {
	if bytes.Count(text, []byte("["))+bytes.Count(text, []byte("{")) < 10000 {
		return json.Valid(text)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	for depth := 0; ; {
		token, err := d.Token()
		if err != nil {
			return false
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			_, err := d.Token()
			return errors.Is(err, io.EOF)
		}
	}
}

var stringLiteral = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

func nesting(text []byte) (deepest int) {
	depth := 0
	for _, c := range stringLiteral.ReplaceAll(text, nil) {
		switch c {
		case '{', '[':
			depth++
			deepest = max(deepest, depth)
		case '}', ']':
			depth--
		}
	}
	return deepest
}

var escape = regexp.MustCompile(`\\(?:u([0-9a-fA-F]{4})|.)`)

func escapesStorable(text []byte) bool {
	high := -1 // where a high surrogate ended
	for _, at := range escape.FindAllSubmatchIndex(text, -1) {
		if high >= 0 && at[0] != high {
			return false
		}
		unit := uint64('x')
		if at[2] >= 0 {
			unit, _ = strconv.ParseUint(string(text[at[2]:at[3]]), 16, 32)
		}
		isLow := unit >= 0xdc00 && unit <= 0xdfff
		if unit == 0 || isLow != (high >= 0) {
			return false
		}
		high = -1
		if unit >= 0xd800 && unit <= 0xdbff {
			high = at[1]
		}
	}
	return high < 0
}

var numberLiteral = regexp.MustCompile(`-?(\d+)(?:\.(\d+))?(?:[eE]([-+]?\d+))?`)

func numbersStorable(text []byte) bool {
	for _, n := range numberLiteral.FindAllSubmatch(stringLiteral.ReplaceAll(text, []byte(`""`)), -1) {
		f, err := strconv.ParseFloat(string(n[0]), 64)
		if err != nil {
			return false
		}
		exponent, err := strconv.ParseInt("0"+strings.TrimLeft(string(n[3]), "-+"), 10, 64)
		if err != nil {
			return false
		}
		if bytes.HasPrefix(n[3], []byte("-")) {
			exponent = -exponent
		}
		decimals := int64(len(n[2])) - exponent
		if exponent > 16383 || decimals > 16383 || f == 0 && bytes.ContainsAny(append(n[1], n[2]...), "123456789") {
			return false
		}
	}
	return true
}

var (
	typePattern = regexp.MustCompile(`^[a-z0-9._-]{1,32}$`)
	idPattern   = regexp.MustCompile(`^[A-Za-z0-9_.~-]{1,64}$`)
)

func kindOK(name string, value any, system bool) bool {
	switch name {
	case "type":
		s, ok := value.(string)
		return ok && typePattern.MatchString(s) && (system || s != "notice" && !strings.HasPrefix(s, "notice."))
	case "mid":
		s, ok := value.(string)
		n := len([]rune(s))
		return ok && n >= 1 && n <= 64
	case "reply_to", "expires":
		n, ok := value.(json.Number)
		if !ok {
			return false
		}
		i, err := strconv.ParseInt(n.String(), 10, 64)
		return err == nil && i >= 1 && i < 1<<53
	case "mentions":
		list, ok := value.([]any)
		if !ok {
			return false
		}
		if len(list) == 1 && list[0] == "*" {
			return true
		}
		return !slices.ContainsFunc(list, func(v any) bool {
			s, ok := v.(string)
			return !ok || !idPattern.MatchString(s)
		})
	case "ext":
		_, ok := value.(map[string]any)
		return ok
	}
	return true
}

// The message around the drafts that checkParse renders.
const (
	testSeq  = 1764000000000042
	testPrev = 1764000000000017
	testFrom = "alice"
	testTo   = "group/42"
	testTS   = 1764000000123
)

// checkParse parses the payload and fails unless Parse keeps every promise and
// agrees with the reference.
func checkParse(tb testing.TB, l chat.Limits, payload []byte, system bool) verdict {
	tb.Helper()
	if l == (chat.Limits{}) {
		l = chat.Limits{Payload: 64 << 10, Depth: 32, Rendered: 100 << 10}
	}
	want := reference(l, payload, system)
	original := bytes.Clone(payload)
	d, err := l.Parse(payload, system)
	if !bytes.Equal(payload, original) {
		tb.Fatal("Parse changed the payload")
	}
	if err != nil {
		var refusal *chat.Error
		if !errors.As(err, &refusal) {
			tb.Fatalf("the error is a %T", err)
		}
		if d.Tail != nil || d.Type != "" || d.Expires != 0 {
			tb.Errorf("a refused payload has a draft: %+v", d)
		}
		if refusal.Code != want.code && refusal.Code != chat.CodeTooLarge {
			tb.Errorf("Parse(%.300q): %v, the reference says %s %s", payload, err, want.class, want.code)
		}
		return verdict{class: "refused", code: refusal.Code}
	}
	// What Parse returns must not change with the payload.
	for i := range payload {
		payload[i] = 'X'
	}
	defer copy(payload, original)
	if want.class == "refused" {
		tb.Fatalf("Parse(%.300q) accepts what the reference refuses (%s)", original, want.code)
	}
	if d.Type != want.typ {
		tb.Errorf("Parse(%.300q): type %q, the reference says %q", original, d.Type, want.typ)
	}
	mid, _ := want.fields["mid"].(string)
	expires, _ := want.fields["expires"].(json.Number)
	if d.Mid != mid || d.Expires != 0 && strconv.FormatInt(d.Expires, 10) != string(expires) || d.Expires == 0 && expires != "" {
		tb.Errorf("Parse(%.300q): mid %q, expires %d; the reference says %q, %s", original, d.Mid, d.Expires, mid, expires)
	}
	if change := wantChange(want.fields); d.Change != change {
		tb.Errorf("Parse(%.300q): %+v, the reference says %+v", original, d.Change, change)
	}
	if (d.Digest != 0) != (d.Mid != "") {
		tb.Errorf("Parse(%.300q): digest %#x with mid %q", original, d.Digest, d.Mid)
	}
	if prefix := `"type":"` + d.Type + `"`; !bytes.HasPrefix(d.Tail, []byte(prefix)) {
		tb.Errorf("the tail %.300q does not begin with %s", d.Tail, prefix)
	}
	checkRendered(tb, l, d, want)
	checkParseWith(tb, l, original, system, want)
	return want
}

// checkParseWith fails unless the payload, with properties of MQTT, becomes the same
// message with ext.mqtt.
func checkParseWith(tb testing.TB, l chat.Limits, payload []byte, system bool, want verdict) {
	tb.Helper()
	const mqtt = `{"content_type":"text/plain","user_properties":[["a","b"]]}`
	d, err := l.ParseWith(payload, system, []byte(mqtt))
	if err != nil {
		if refusal, ok := errors.AsType[*chat.Error](err); !ok || refusal.Code != chat.CodeTooLarge {
			tb.Errorf("ParseWith(%.300q): %v", payload, err)
		}
		return
	}
	ext := map[string]any{}
	if had, ok := want.fields["ext"].(map[string]any); ok {
		maps.Copy(ext, had)
	}
	ext["mqtt"] = map[string]any{"content_type": "text/plain", "user_properties": []any{[]any{"a", "b"}}}
	with := want
	with.fields = maps.Clone(want.fields)
	with.fields["ext"] = ext
	checkRendered(tb, l, d, with)
	if n := strings.Count(string(d.Tail), mqtt); n < 1 {
		tb.Errorf("ParseWith(%.300q): %.300s has no ext.mqtt as it was given", payload, d.Tail)
	}
}

// checkRendered fails unless the draft renders to one JSON object that has the
// broker's fields once, as they were set, and the client's as the reference has
// them.
func checkRendered(tb testing.TB, l chat.Limits, d chat.Draft, want verdict) {
	tb.Helper()
	m := chat.Message{Seq: testSeq, From: testFrom, To: testTo, TS: testTS, Type: d.Type, Mid: d.Mid, Expires: d.Expires, Tail: d.Tail}
	rendered := m.AppendEnvelope([]byte("before"), testPrev)[len("before"):]
	if len(rendered)+grownInJSONB(tb, rendered) > l.Rendered {
		tb.Errorf("%d bytes rendered, over the limit of %d", len(rendered), l.Rendered)
	}
	if !json.Valid(rendered) {
		tb.Fatalf("not JSON: %.300q", rendered)
	}
	members, ok := topMembers(rendered)
	if !ok {
		tb.Fatalf("not a JSON object: %.300q", rendered)
	}
	got := map[string]any{}
	for _, m := range members {
		if _, ok := got[m.name]; ok {
			tb.Errorf("%q is there twice: %.300q", m.name, rendered)
		}
		got[m.name] = m.value
	}
	wantAll := map[string]any{
		"seq": json.Number(fmt.Sprint(testSeq)), "prev": json.Number(fmt.Sprint(testPrev)),
		"from": testFrom, "to": testTo, "ts": json.Number(fmt.Sprint(testTS)),
	}
	maps.Copy(wantAll, want.fields)
	// Not cmp.Diff, whose time doubles with every level of nesting.
	if !reflect.DeepEqual(wantAll, got) {
		tb.Errorf("rendered %.300q, want %.300v", rendered, wantAll)
	}
	checkReceived(tb, &m, d.Change, rendered)
}

// checkReceived fails unless ParseEnvelope reads from the rendered message what
// was rendered into it.
func checkReceived(tb testing.TB, m *chat.Message, change chat.Change, rendered []byte) {
	tb.Helper()
	archived := m.AppendArchived(nil)
	for _, b := range [][]byte{rendered, archived} {
		e, err := chat.ParseEnvelope(b)
		if err != nil {
			tb.Fatalf("ParseEnvelope(%.300q): %v", b, err)
		}
		want := chat.Envelope{
			Seq: m.Seq, Prev: testPrev, From: m.From, To: m.To, TS: m.TS,
			Type: m.Type, Mid: m.Mid, Change: change, Object: archived,
		}
		if &b[0] == &archived[0] {
			want.Prev = 0
		}
		if diff := cmp.Diff(want, e); diff != "" {
			tb.Errorf("ParseEnvelope(%.300q) (-want +got):\n%s", b, diff)
		}
	}
}
