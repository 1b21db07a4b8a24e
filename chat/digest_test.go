package chat_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"mynah/chat"
)

func mustDigest(tb testing.TB, payload string) uint64 {
	tb.Helper()
	d, err := chat.Limits{}.Parse([]byte(payload), false)
	if err != nil {
		tb.Fatalf("Parse(%s): %v", payload, err)
	}
	if d.Digest == 0 {
		tb.Fatalf("Parse(%s): no digest", payload)
	}
	return d.Digest
}

// A client that publishes a message again may have written it anew, with another library:
// that is the same message, and nothing else is.
func TestDigest(t *testing.T) {
	t.Parallel()
	same := [][]string{
		{
			`{"mid":"m","body":{"a":1,"b":"你好/"}}`, `{"body":{"b":"\u4f60\u597d\/","a":1},"mid":"m"}`,
			` { "type" : "text" , "mid" : "\u006d" , "body" : { "\u0061" : 1.0 , "b" : "你好/" } } `,
			`{"seq":5,"from":"x","mid":"m","body":{"a":10e-1,"b":"你好/"},"ts":7}`,
			`{"mid":"m","body":{"a":0.1E1,"b":"你好/"}}`, `{"mid":"m","body":{"a":1.000,"b":"你好/"}}`,
		},
		{`{"mid":"m","body":"👋\n"}`, `{"mid":"m","body":"\ud83d\udc4b\u000A"}`},
		{`{"mid":"m","body":0}`, `{"mid":"m","body":-0}`, `{"mid":"m","body":0.00}`, `{"mid":"m","body":-0e5}`},
		{`{"mid":"m","body":-120}`, `{"mid":"m","body":-1.2e2}`, `{"mid":"m","body":-12e+1}`, `{"mid":"m","body":-120.0}`},
		{`{"mid":"m","body":1e300}`, `{"mid":"m","body":1` + strings.Repeat("0", 300) + `}`},
	}
	other := []string{
		`{"mid":"m","body":"1"}`, `{"mid":"m","body":1}`, `{"mid":"m","body":-1}`, `{"mid":"m","body":10}`, `{"mid":"m","body":0.1}`,
		`{"mid":"m","body":9007199254740992}`, `{"mid":"m","body":9007199254740993}`, `{"mid":"m","body":0.1000000000000000055}`,
		`{"mid":"m","body":true}`, `{"mid":"m","body":false}`, `{"mid":"m","body":null}`, `{"mid":"m"` + `,"body":"null"}`,
		`{"mid":"m","body":[]}`, `{"mid":"m","body":{}}`, `{"mid":"m","body":[[]]}`, `{"mid":"m","body":[{}]}`, `{"mid":"m","body":""}`,
		`{"mid":"m","body":[1,2]}`, `{"mid":"m","body":[2,1]}`, `{"mid":"m","body":[[1],2]}`, `{"mid":"m","body":[[1,2]]}`,
		`{"mid":"m","body":{"a":"b"}}`, `{"mid":"m","body":{"b":"a"}}`, `{"mid":"m","body":["a","b"]}`, `{"mid":"m","body":{"a":{"b":1}}}`,
		`{"mid":"m","body":{"a":1,"b":2}}`, `{"mid":"m","body":{"a":2,"b":1}}`, `{"mid":"m","body":{"a":1},"b":2}`,
		`{"mid":"m","type":"data","body":1}`, `{"mid":"n","body":1}`, `{"mid":"m","body":1,"ext":{}}`,
		`{"mid":"m","body":"é"}`, `{"mid":"m","body":"e\u0301"}`, `{"mid":"m","body":"\\u00e9"}`,
		`{"mid":"m","body":"aaaaaaaa"}`, `{"mid":"m","body":"aaaaaaaaa"}`, `{"mid":"m","body":"aaaaaaa"}`, `{"mid":"m","body":"bbbbbbbbaaaaaaaa"}`,
		`{"mid":"m","body":"aaaaaaaabbbbbbbb"}`,
	}
	seen := map[uint64]string{}
	for _, spellings := range same {
		want := mustDigest(t, spellings[0])
		for _, s := range spellings {
			if mustDigest(t, s) != want {
				t.Errorf("%.100s is taken for another message than %.100s", s, spellings[0])
			}
		}
		seen[want] = spellings[0]
	}
	for _, s := range other {
		d := mustDigest(t, s)
		if was, ok := seen[d]; ok {
			t.Errorf("%s is taken for %s", s, was)
		}
		seen[d] = s
	}
}

// Digests are stored: whatever is made faster, they stay what they are.
func TestDigestStays(t *testing.T) {
	t.Parallel()
	for payload, want := range map[string]uint64{
		`{"body":"hello","mid":"m"}`:                                                                           0x12c083f119365ccd,
		`{"type":"x-a","body":"1234567","mid":"12345678"}`:                                                     0xe4a1b5b5589d0dd1,
		`{"body":"123456789012345","mid":"5f1c2a90-7b1d-4c55"}`:                                                0x6d9d63b74656e715,
		`{ "body": {"a":[1, -2.50e3, true, null, "\u4f60\n"]}, "mid":"m", "reply_to": 7, "mentions":["bob"] }`: 0x6d1a4f2ba8993c57,
		`{"type":"reaction","of":5,"key":"👍","remove":false,"mid":"m","ext":{},"expires":1764000000000}`:       0x57dc5d997b11fa2e,
		`{"body":"a\"b","mid":"m","x":[{}]}`:                                                                   0x31bca0561ccb1d6c,
		`{"type":"read","upto":3,"mid":"m"}`:                                                                   0x57691b3d8a675a63,
		`{"type":"text","mid":"m"}`:                                                                            0xdc43a1c2e1a2cd16,
	} {
		if got := mustDigest(t, payload); got != want {
			t.Errorf("%s: %#x, want %#x", payload, got, want)
		}
	}
}

// speller writes JSON values in one of the many ways.
type speller struct{ r *rand.Rand }

func (w speller) value(v any) string {
	switch v := v.(type) {
	case string:
		return w.text(v)
	case int:
		return w.number(v)
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			parts[i] = w.space() + w.value(e) + w.space()
		}
		return "[" + strings.Join(parts, ",") + "]"
	case map[string]any:
		parts := []string{}
		for name, e := range v {
			parts = append(parts, w.space()+w.text(name)+w.space()+":"+w.space()+w.value(e))
		}
		slices.Sort(parts)
		w.r.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		return "{" + strings.Join(parts, ",") + w.space() + "}"
	case nil:
		return "null"
	}
	return fmt.Sprint(v)
}

func (w speller) space() string { return []string{"", "", " ", "\n\t"}[w.r.IntN(4)] }

func (w speller) text(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\' || w.r.IntN(4) == 0:
			for _, unit := range utf16(c) {
				fmt.Fprintf(&b, []string{`\u%04x`, `\u%04X`}[w.r.IntN(2)], unit)
			}
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func utf16(c rune) []rune {
	if c < 0x10000 {
		return []rune{c}
	}
	c -= 0x10000
	return []rune{0xd800 + c>>10, 0xdc00 + c&0x3ff}
}

func (w speller) number(n int) string {
	kind := w.r.IntN(4)
	if n == 0 && kind == 1 {
		kind = 0
	}
	switch kind {
	case 0:
		return fmt.Sprintf("%d.%s", n, strings.Repeat("0", 1+w.r.IntN(3)))
	case 1:
		return fmt.Sprintf("%d000e-3", n)
	case 2:
		return fmt.Sprintf("%de%s0", n, []string{"", "+", "-"}[w.r.IntN(3)])
	}
	return fmt.Sprint(n)
}

func randomValue(r *rand.Rand, depth int) any {
	kinds := 7
	if depth == 0 {
		kinds = 5
	}
	switch r.IntN(kinds) {
	case 0:
		return nil
	case 1:
		return r.IntN(2) == 0
	case 2:
		return r.IntN(2000) - 1000
	case 3, 4:
		return randomText(r)
	case 5:
		all := make([]any, r.IntN(4))
		for i := range all {
			all[i] = randomValue(r, depth-1)
		}
		return all
	}
	all := map[string]any{}
	for range r.IntN(4) {
		all[randomText(r)] = randomValue(r, depth-1)
	}
	return all
}

func randomText(r *rand.Rand) string {
	alphabet := []rune("ab/\\\"你é👋 0")
	text := make([]rune, r.IntN(20))
	for i := range text {
		text[i] = alphabet[r.IntN(len(alphabet))]
	}
	return string(text)
}

// TestDigestSpellings writes random values in random ways, and compares with what
// differs in one place.
func TestDigestSpellings(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	w := speller{r}
	for range 3000 {
		message := map[string]any{"mid": "m", "body": randomValue(r, 4)}
		if r.IntN(2) == 0 { // with a name that is not known the digest is made another way
			message["x"] = randomValue(r, 2)
		}
		one, two := w.value(message), w.value(message)
		if mustDigest(t, one) != mustDigest(t, two) {
			t.Fatalf("two messages, not one:\n%s\n%s", one, two)
		}
		message["body"] = []any{message["body"]}
		if mustDigest(t, one) == mustDigest(t, w.value(message)) {
			t.Fatalf("one message, not two:\n%s\n%s", one, w.value(message))
		}
	}
}
