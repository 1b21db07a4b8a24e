package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"

	"mynah/internal/mqttwire"
	"mynah/torture/ledger"
)

// payloadMaker makes the messages of one publisher, in all the forms of PROTOCOL.md.
// Every message has a content of its own.
type payloadMaker struct {
	subject string
	qos     byte
	mid     bool
	plain   bool // the broker passes payloads on unchanged
	rnd     *rand.Rand
	count   uint64
}

// nextMessage returns a new message for the topic, for the client (key and payload) and
// for the ledger.
func (p *payloadMaker) nextMessage(topic string, mqtt byte) (key string, payload []byte, m *ledger.Message) {
	p.count++
	key = fmt.Sprintf("%s-%d", p.subject, p.count)
	text := ledger.Mark(key, p.randomText())
	m = &ledger.Message{Key: key, Sender: p.subject, Topic: topic, QoS: p.qos, Number: p.count}
	if p.plain {
		payload = []byte(text)
		m.Digest = ledger.DigestPlain(payload)
		return key, payload, m
	}
	fields := map[string]any{"type": "text", "body": text}
	switch form := p.rnd.IntN(6); {
	case p.mid:
		m.Mid = fmt.Sprintf("mid-%s-%d-%d", p.subject, mqtt, p.count)
		fields["mid"] = m.Mid
		if form == 0 {
			fields["type"] = "x-torture"
			fields["ext"] = map[string]any{"n": float64(p.count), "deep": []any{"é", true, nil}}
		}
		payload = encode(fields)
	case form == 0: // form 1, with a forged sender
		forged := map[string]any{"seq": 1, "prev": 7, "from": "mallory", "ts": 3, "to": "group/none", "body": text}
		payload = encode(forged)
	case form == 1: // form 2
		body := map[string]any{"text": text, "n": float64(p.count)}
		fields = map[string]any{"type": "data", "body": body}
		payload = encode(body)
	case form == 2: // form 4
		payload = append([]byte{0xff, 0xfe, 0}, text...)
		fields = map[string]any{"type": "binary", "body": base64.StdEncoding.EncodeToString(payload)}
	default: // form 3
		payload = []byte(text)
	}
	m.Digest = ledger.Digest(fields)
	return key, payload, m
}

func encode(v map[string]any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers
	}
	return b
}

// randomText returns a text that is usually short, sometimes some kilobytes,
// and rarely long.
func (p *payloadMaker) randomText() string {
	n := 5 + p.rnd.IntN(30)
	switch p.rnd.IntN(100) {
	case 0:
		n = 2000 + p.rnd.IntN(1500)
	case 1, 2, 3:
		n = 200 + p.rnd.IntN(300)
	}
	const words = "abc déf 你好 \"q\" \\ \t\u2028 <&> 😀 "
	return strings.Repeat(words, n/10+1)[:len(words)*(n/10)+len("abc")]
}

// versionName returns the name of a protocol version for client ids and the
// log.
func versionName(v byte) string {
	if v == mqttwire.V5 {
		return "v5"
	}
	return "v311"
}
