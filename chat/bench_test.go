package chat_test

import (
	"fmt"
	"strings"
	"testing"

	"mynah/chat"
)

// The payloads are 128 bytes long, as in the whole-system benchmark.
var benchPayloads = []struct{ name, payload string }{
	{"Text", strings.Repeat("Good morning, dear everybody. ", 5)[:128]},
	{"TextChinese", strings.Repeat("大家早上好", 9)[:126]},
	{"JSON", `{"type":"text","body":"` + strings.Repeat("Good morning. ", 6)[:60] + `","mid":"5f1c2a90-7b1d-4c55-9c0e-0f2a9d8b7c61"}`},
	{"JSONSpaced", `{"type": "text", "body": "` + strings.Repeat("Good morning. ", 6)[:57] + `", "mid": "5f1c2a90-7b1d-4c55-9c0e-0f2a9d8b7c61"}`},
	{"JSONBody", `{"body":"` + strings.Repeat("Good morning. ", 9)[:117] + `"}`},
	{"Data", `{"temperature":21.5,"humidity":40.25,"battery":{"volts":3.71,"percent":81},"ok":true,"station":"roof-7","samples":[1,2,3,4,5,6]}`},
	{"Binary", strings.Repeat("\xff\x00\x10\x80", 32)},
}

func BenchmarkParse(b *testing.B) {
	for _, p := range benchPayloads {
		b.Run(p.name, func(b *testing.B) {
			payload := []byte(p.payload)
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				if _, err := (chat.Limits{}).Parse(payload, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkParseHostile is what 64 KiB cost that are made to cost most: their
// sender must not be able to slow everybody else down.
func BenchmarkParseHostile(b *testing.B) {
	const size = 64 << 10
	fill := func(open, part, end string) string {
		return open + strings.Repeat(part, (size-len(open)-len(end))/len(part)) + end
	}
	names := func(prefix string) string {
		var b strings.Builder
		b.WriteString(`{"body":0`)
		for i := 0; b.Len() < size-20; i++ {
			fmt.Fprintf(&b, `,"%s%x":0`, prefix, i)
		}
		return b.String() + "}"
	}
	for _, p := range []struct{ name, payload string }{
		{"Names", names("")},
		{"EscapedNames", names(`\u0061`)},
		{"Depth", fill("{\"body\":", "[", "")},
		{"Escapes", fill(`{"body":"`, `\n`, `"}`)},
		{"Numbers", fill(`{"body":[`, `5e-324,`, `0]}`)},
		{"LongNumbers", fill(`{"body":[`, `1.`+strings.Repeat("7976931348623157", 19)+`e308,`, `0]}`)},
		{"LongNumber", fill(`{"body":0.`, `1`, `}`)},
		{"Spaces", fill(`{"body":[`, ` 1 ,`, `0]}`)},
		{"Objects", fill(`{"body":[`, `{},`, `0]}`)},
		{"Mentions", fill(`{"body":0,"mentions":[`, `"a",`, `"b"]}`)},
		{"Quotes", strings.Repeat(`"`, size)},
		{"Broken", fill(`{"body":"`, `x`, ``)},
	} {
		b.Run(p.name, func(b *testing.B) {
			payload := []byte(p.payload)
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				_, _ = (chat.Limits{Rendered: 1 << 20}).Parse(payload, false)
			}
		})
	}
}

func benchMessage(b *testing.B) chat.Message {
	b.Helper()
	d, err := chat.Limits{}.Parse([]byte(benchPayloads[2].payload), false)
	if err != nil {
		b.Fatal(err)
	}
	return chat.Message{Seq: 1764000000000042, From: "alice", To: "group/lobby", TS: 1764000000123, Type: d.Type, Mid: d.Mid, Tail: d.Tail}
}

func BenchmarkRender(b *testing.B) {
	m := benchMessage(b)
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		buf = m.AppendEnvelope(buf[:0], 1764000000000017)
	}
}

func BenchmarkParseEnvelope(b *testing.B) {
	m := benchMessage(b)
	envelope := m.AppendEnvelope(nil, 1764000000000017)
	b.ReportAllocs()
	b.SetBytes(int64(len(envelope)))
	for b.Loop() {
		if _, err := chat.ParseEnvelope(envelope); err != nil {
			b.Fatal(err)
		}
	}
}
