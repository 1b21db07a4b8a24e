package chat_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"mynah/chat"
)

// TestParseTail guards the bytes of the stored form: what stands where, what is
// left out, what is escaped.
func TestParseTail(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ payload, tail string }{
		// Form 1.
		{`{"body":"hello"}`, `"type":"text","body":"hello"}`},
		{`{"type":"image"}`, `"type":"image"}`},
		{`{"type":"image","body":{"url":"u"},"w":1.50}`, `"type":"image","body":{"url":"u"},"w":1.50}`},
		{`{"w":1,"type":"image","h":2}`, `"type":"image","w":1,"h":2}`},
		{`{"w":1,"h":2,"type":"image"}`, `"type":"image","w":1,"h":2}`},
		{`{"t\u0079pe":"im\u0061ge","b\u006fdy":"\u0041"}`, `"type":"image","b\u006fdy":"\u0041"}`},
		{`{"seq":1,"prev":2,"from":"eve","to":"x","ts":3,"body":1}`, `"type":"text","body":1}`},
		{`{"body":1,"seq":1,"prev":2,"from":"eve","to":"x","ts":3}`, `"type":"text","body":1}`},
		{`{"a":1,"seq":{"b":[","]},"c":2,"fr\u006fm":"eve","d":3,"body":4}`, `"type":"text","a":1,"c":2,"d":3,"body":4}`},
		{`{"Body":2,"body":1,"MID":"x","form":"eve","tso":1,"types":[]}`, `"type":"text","Body":2,"body":1,"MID":"x","form":"eve","tso":1,"types":[]}`},
		{`{"body":{"From":"eve","TYPE":1}}`, `"type":"text","body":{"From":"eve","TYPE":1}}`},
		{`{"mid":"m","expires":5,"body":1}`, `"type":"text","mid":"m","expires":5,"body":1}`},
		{
			"\t{ \"body\" : [ 1 ,\n\"a  \\\" b\" , { \"c\" : { } , \"d\" : [ ] } ] , \"to\" : 1 , \"x\" : true }\r\n",
			`"type":"text","body":[1,"a  \" b",{"c":{},"d":[]}],"x":true}`,
		},
		// Form 2.
		{`{}`, `"type":"data","body":{}}`},
		{`{"type":7,"from":"roof","mid":[],"seq":null}`, `"type":"data","body":{"type":7,"from":"roof","mid":[],"seq":null}}`},
		{" { \"a b\" : [ 1 , 2 ] } ", `"type":"data","body":{"a b":[1,2]}}`},
		{` [ "a" , 1.50 ] `, `"type":"data","body":["a",1.50]}`},
		{"21.5\n", `"type":"data","body":21.5}`},
		{`true`, `"type":"data","body":true}`},
		{`null`, `"type":"data","body":null}`},
		// Form 3.
		{` `, `"type":"text","body":" "}`},
		{`say "hi" \o/ <&>`, `"type":"text","body":"say \"hi\" \\o/ <&>"}`},
		{"\x01\b\t\n\v\f\r\x1f\x7f", `"type":"text","body":"\u0001\b\t\n\u000b\f\r\u001f` + "\x7f" + `"}`},
		{"大家好\u2028👋", `"type":"text","body":"大家好` + "\u2028" + `👋"}`},
		{`"a"`, `"type":"text","body":"\"a\""}`},
		{`["a",]`, `"type":"text","body":"[\"a\",]"}`},
		{`{"body":"x"`, `"type":"text","body":"{\"body\":\"x\""}`},
		// Form 4.
		{"\xff", `"type":"binary","body":"/w=="}`},
		{"{\"body\":\"\xff\"}", `"type":"binary","body":"eyJib2R5Ijoi/yJ9"}`},
	} {
		d, err := chat.Limits{}.Parse([]byte(c.payload), false)
		if err != nil || string(d.Tail) != c.tail {
			t.Errorf("Parse(%q): %s, %v\nwant %s", c.payload, d.Tail, err, c.tail)
		}
	}
}

// TestParseDraft guards the fields that the broker acts on.
func TestParseDraft(t *testing.T) {
	t.Parallel()
	d, err := chat.Limits{}.Parse([]byte(`{"type":"x-note","mid":"\ud83d\ude00\n","expires":1764000000123,"body":1}`), false)
	if err != nil || d.Type != "x-note" || d.Mid != "😀\n" || d.Expires != 1764000000123 {
		t.Errorf("%+v, %v", d, err)
	}
	// In other forms the same names are data.
	d, err = chat.Limits{}.Parse([]byte(`{"mid":"m","expires":5}`), false)
	if err != nil || d.Type != "data" || d.Mid != "" || d.Expires != 0 {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestParseRefusalNamesTheMessage guards that the sender of several messages can
// tell which one was refused.
func TestParseRefusalNamesTheMessage(t *testing.T) {
	t.Parallel()
	for _, payload := range []string{
		`{"mid":"m1","type":"notice.x"}`,
		`{"type":"TEXT","mid":"m1"}`,
		`{"body":"\u0000","mid":"m1"}`,
		`{"body":1,"reply_to":"x","mid":"m1"}`,
		`{"mid":"m1","body":"` + strings.Repeat("x", 200) + `"}`,
	} {
		d, err := chat.Limits{Rendered: 400}.Parse([]byte(payload), false)
		if err == nil || d.Mid != "m1" {
			t.Errorf("Parse(%s): mid %q, %v", payload, d.Mid, err)
		}
	}
}

// TestParseReasons guards that a refusal says what is wrong.
func TestParseReasons(t *testing.T) {
	t.Parallel()
	for payload, word := range map[string]string{
		"\x00":              "U+0000",
		`{"body":"\u0000"}`: "U+0000",
		`{"body":"\ud800"}`: "surrogate",
		`{"body":1e999}`:    "double",
		strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40): "nested",
		`{"body":1,"a":1,"a":2}`:                                    "twice",
		`{"body":1,"body":2}`:                                       "twice",
		`{"body":1,"From":"eve"}`:                                   "lower case",
		`{"body":1,"fr\u004fm":"eve"}`:                              "lower case",
		`{"TYPE":"notice.a","type":"text"}`:                         "lower case",
		`{"body":1,"ſeq":1}`:                                        "lower case",
		`{"body":1,"t\u017f":1}`:                                    "lower case",
		`{"body":1,"Prev":1}`:                                       "lower case",
		`{"body":1,"TO":1}`:                                         "lower case",
		`{"type":"A"}`:                                              "type must be",
		`{"type":1,"body":1}`:                                       "type must be a string",
		`{"type":"notice.a"}`:                                       "system",
		`{"body":1,"mid":1}`:                                        "mid",
		`{"body":1,"reply_to":1.5}`:                                 "reply_to",
		`{"body":1,"mentions":1}`:                                   "mentions",
		`{"body":1,"expires":0}`:                                    "expires",
		`{"body":1,"ext":0}`:                                        "ext",
	} {
		_, err := chat.Limits{}.Parse([]byte(payload), false)
		var refusal *chat.Error
		if !errors.As(err, &refusal) || refusal.Code != chat.CodeBadMessage || !strings.Contains(refusal.Reason, word) {
			t.Errorf("Parse(%.80q): %v, want a word of %q", payload, err, word)
		}
	}
}

// TestParseLimits guards each limit at its edge, and that a message at the edge
// renders within the limit with the longest ids and numbers there can be.
func TestParseLimits(t *testing.T) {
	t.Parallel()
	code := func(err error) chat.Code {
		var refusal *chat.Error
		if err != nil && !errors.As(err, &refusal) {
			t.Fatalf("%T", err)
		}
		if refusal == nil {
			return ""
		}
		return refusal.Code
	}
	text := func(n int) []byte { return bytes.Repeat([]byte("x"), n) }
	for _, c := range []struct {
		name    string
		limits  chat.Limits
		payload []byte
		want    chat.Code
	}{
		{"payload of 64 KiB", chat.Limits{}, text(64 << 10), ""},
		{"payload over 64 KiB", chat.Limits{}, text(64<<10 + 1), chat.CodeTooLarge},
		{"binary of 64 KiB", chat.Limits{}, bytes.Repeat([]byte{0xff}, 64<<10), ""},
		{"quotes that double", chat.Limits{}, bytes.Repeat([]byte(`"`), 60<<10), chat.CodeTooLarge},
		{"controls that grow sixfold", chat.Limits{}, bytes.Repeat([]byte{1}, 20<<10), chat.CodeTooLarge},
		{"payload as configured", chat.Limits{Payload: 10}, text(10), ""},
		{"payload over what is configured", chat.Limits{Payload: 10}, text(11), chat.CodeTooLarge},
		{"larger than the defaults", chat.Limits{Payload: 1 << 20, Rendered: 2 << 20}, text(1 << 20), ""},
		{"depth as configured", chat.Limits{Depth: 2}, []byte(`{"body":[1]}`), ""},
		{"depth over what is configured", chat.Limits{Depth: 2}, []byte(`{"body":[[]]}`), chat.CodeBadMessage},
		{"depth of data", chat.Limits{Depth: 1}, []byte(`{"a":{}}`), chat.CodeBadMessage},
		{"depth is bounded", chat.Limits{Depth: 1 << 30}, nested(chat.MaxDepth), ""},
		{"depth over its bound", chat.Limits{Depth: 1 << 30}, nested(chat.MaxDepth + 1), chat.CodeBadMessage},
		{"too large before all else", chat.Limits{Payload: 3}, []byte("\xff\x00{}"), chat.CodeTooLarge},
	} {
		if _, err := c.limits.Parse(c.payload, false); code(err) != c.want {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}

	longest := chat.Message{
		Seq: 1<<64 - 1, From: strings.Repeat("f", chat.MaxIDLen), TS: 1<<63 - 1,
		To: chat.GroupTopic(strings.Repeat("t", chat.MaxIDLen)) + "/signal",
	}
	limits := chat.Limits{Rendered: 1000}
	for name, payload := range map[string]func(n int) string{
		"text":    func(n int) string { return strings.Repeat("x", n) },
		"escapes": func(n int) string { return strings.Repeat("\x01", n/6) },
		"binary":  func(n int) string { return strings.Repeat("\xff", n*3/4) },
		"data":    func(n int) string { return `{"a":"` + strings.Repeat("x", n) + `"}` },
		"message": func(n int) string { return `{"body":"` + strings.Repeat("x", n) + `"}` },
	} {
		accepted := 0
		for n := 500; n <= 1000; n++ {
			d, err := limits.Parse([]byte(payload(n)), false)
			if err != nil {
				if code(err) != chat.CodeTooLarge {
					t.Errorf("%s: %v", name, err)
				}
				break
			}
			longest.Tail = d.Tail
			accepted = max(accepted, len(longest.AppendEnvelope(nil, 1<<64-1)))
		}
		if accepted > limits.Rendered || accepted < limits.Rendered-20 {
			t.Errorf("%s: the longest that is accepted renders to %d bytes, the limit is %d", name, accepted, limits.Rendered)
		}
	}
}

func nested(depth int) []byte {
	return []byte(`{"body":` + strings.Repeat("[", depth-1) + strings.Repeat("]", depth-1) + "}")
}

// TestParseManyNames guards that an object of many names is neither slow to check
// for repeated ones (it was compared each with each) nor checked wrongly.
func TestParseManyNames(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 7, 8, 9, 10, 6000} {
		var b strings.Builder
		b.WriteString(`{"body":1`)
		for i := range n {
			fmt.Fprintf(&b, `,"%x":0`, i)
		}
		if _, err := (chat.Limits{}).Parse([]byte(b.String()+"}"), false); err != nil {
			t.Errorf("%d names: %v", n, err)
		}
		for _, again := range []string{`"0"`, `"\u0030"`, fmt.Sprintf(`"%x"`, n-1)} {
			if _, err := (chat.Limits{}).Parse([]byte(b.String()+","+again+":0}"), false); err == nil {
				t.Errorf("%d names and %s again are accepted", n, again)
			}
		}
	}
}

// TestParseAllocations guards the publish path: one allocation for the tail, one
// for a mid, one for a type that is the application's own.
func TestParseAllocations(t *testing.T) {
	for payload, want := range map[string]float64{
		"Good morning":                  1,
		"\xff\xfe":                      1,
		`{"a":1,"b":[{"c":2}],"d":"e"}`: 1,
		`{"type":"image","body":"x","from":"eve"}`: 1,
		`{"body":"x","mid":"5f1c"}`:                2,
		`{"type":"x-poll","mid":"5f1c"}`:           3,
	} {
		b := []byte(payload)
		got := testing.AllocsPerRun(100, func() {
			if _, err := (chat.Limits{}).Parse(b, false); err != nil {
				t.Fatal(err)
			}
		})
		if got > want {
			t.Errorf("Parse(%q) allocates %v times, want %v", payload, got, want)
		}
	}
}

// TestParseGenerated holds Parse against the reference on objects that are built
// to be messages, with the names that matter, spelled in every way.
func TestParseGenerated(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		payload := drawObject(r)
		checkParse(t, chat.Limits{}, []byte(payload), rapid.Bool().Draw(r, "system"))
		if t.Failed() {
			r.Fatalf("payload %q", payload)
		}
	})
}

func drawObject(r *rapid.T) string {
	space := rapid.SampledFrom([]string{"", "", "", " ", "\n\t"})
	name := rapid.SampledFrom([]string{
		"seq", "prev", "from", "to", "ts", "type", "type", "body", "body", "mid", "reply_to", "mentions", "expires", "ext", "a", "From", "大", "",
	})
	value := rapid.SampledFrom([]string{
		`"text"`, `"x-a"`, `"notice.b"`, `"\u0061"`, `"*"`, `"alice"`, `"大 \"x\""`, `""`, `"A b"`, `"\ud83d\ude00"`, `"\ud83d"`, `"\u0000"`, `"\\u0000"`,
		"0", "1", "-1", "1764000000000042", "1.5", "1e5", "1e400", "1E-400", "0e-17000", "9007199254740991", "9007199254740992",
		"true", "false", "null", "[]", "{}", `["alice","bob"]`, `["*"]`, `["*","bob"]`, `[ "\u0061" , "b" ]`, `[[1]]`, `{ "type" : "x" , "a":[{}] }`,
		"tru", "01", `"a`, "[1,]", "{1}", "\xff",
	})
	plainly := rapid.SampledFrom([]bool{true, true, true, false})
	spelled := func(s string) string {
		if plainly.Draw(r, "plainly") {
			return `"` + s + `"`
		}
		var b strings.Builder
		for _, c := range s {
			if rapid.Bool().Draw(r, "escaped") {
				fmt.Fprintf(&b, `\u%04X`, c)
			} else {
				b.WriteRune(c)
			}
		}
		return `"` + b.String() + `"`
	}
	var b strings.Builder
	b.WriteString(space.Draw(r, "space") + "{")
	for i := range rapid.IntRange(0, 6).Draw(r, "members") {
		if i > 0 {
			b.WriteString(",")
		}
		b.WriteString(space.Draw(r, "space") + spelled(name.Draw(r, "name")) + space.Draw(r, "space") + ":")
		b.WriteString(space.Draw(r, "space") + value.Draw(r, "value") + space.Draw(r, "space"))
	}
	b.WriteString("}" + space.Draw(r, "space"))
	return b.String()
}

// TestParseNumbers guards the edge between the numbers that a double holds and
// those that it does not, against strconv, digit by digit.
func TestParseNumbers(t *testing.T) {
	t.Parallel()
	check := func(tb interface{ Errorf(string, ...any) }, number string) {
		f, err := strconv.ParseFloat(number, 64)
		held := err == nil && (f != 0 || !strings.ContainsAny(strings.Split(strings.ToLower(number), "e")[0], "123456789"))
		for _, literal := range []string{number, "-" + number} {
			if _, err := (chat.Limits{}).Parse([]byte(`{"body":`+literal+`}`), false); (err == nil) != held {
				tb.Errorf("%.100s: %v, as a double it is %v", literal, err, f)
			}
		}
	}
	overflow := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 1024), new(big.Int).Lsh(big.NewInt(1), 970))
	below := new(big.Int).Sub(overflow, new(big.Int).Exp(big.NewInt(10), big.NewInt(308-29), nil))
	vanish := new(big.Int).Exp(big.NewInt(5), big.NewInt(1075), nil).String() // times 10^-1075 it is 2^-1075
	for _, number := range []string{
		overflow.String(), below.String(), overflow.String() + ".0", below.String() + ".9",
		"0." + overflow.String() + "e309", "0." + below.String() + "E+309", "0.000" + below.String() + "e312",
		overflow.String() + "000e-3", below.String() + "000e-3",
		vanish + "e-1075", vanish[:30] + "9e-353", "0." + strings.Repeat("0", 323) + vanish,
		"0." + strings.Repeat("0", 323) + "25", "25" + "e-325", "24" + "e-325", "0.0000025e-318", "0.0000024e-318",
		"1.7976931348623157e308", "1.7976931348623158e308", "1.7976931348623159e308", "17976931348623158" + strings.Repeat("0", 292),
		"1" + strings.Repeat("0", 308), "1" + strings.Repeat("0", 309), "2e308", "9.99e307", "4.9e-324", "5e-324", "1e-323", "2e-324", "3e-324",
		"0", "0.0", "0e400", "0.000e-400", "1e308", "1e309", "10e307", "10e308", "0.1e309", "0.1e310",
	} {
		check(t, number)
	}
	rapid.Check(t, func(r *rapid.T) {
		f := rapid.Float64Range(0, math.MaxFloat64).Draw(r, "f")
		if rapid.Bool().Draw(r, "tiny") {
			f = math.Float64frombits(rapid.Uint64Range(0, 1<<53).Draw(r, "bits"))
		}
		digits := strconv.FormatFloat(f, 'e', rapid.IntRange(-1, 25).Draw(r, "precision"), 64)
		mantissa, exponent, _ := strings.Cut(digits, "e")
		power, err := strconv.Atoi(exponent)
		if err != nil {
			r.Fatal(err)
		}
		check(r, mantissa+"e"+strconv.Itoa(power+rapid.IntRange(-2, 2).Draw(r, "shift")))
	})
}
