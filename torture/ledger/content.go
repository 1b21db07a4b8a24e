package ledger

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
)

// Content is the part of a published, delivered or archived message that the
// ledger compares.
type Content struct {
	Key    string
	Digest uint64 // of all fields except those that the broker adds
	Seq    uint64
	Prev   uint64
	From   string
	To     string
}

// keyMark stands before and after the key in a message's text.
const keyMark = "|"

// Mark returns a text that ReadEnvelope and ReadPlain find the key in.
func Mark(key, text string) string { return keyMark + key + keyMark + text }

func findKey(text string) (string, error) {
	_, rest, ok := strings.Cut(text, keyMark)
	key, _, ok2 := strings.Cut(rest, keyMark)
	if !ok || !ok2 {
		return "", fmt.Errorf("no key in %.60q", text)
	}
	return key, nil
}

// Digest returns the digest of the fields that a client may set, in their
// stored form.
func Digest(fields map[string]any) uint64 {
	b, err := json.Marshal(fields) // sorts the keys
	if err != nil {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write(b) // never fails
	return h.Sum64()
}

// DigestPlain returns the digest of a payload that is delivered as it is.
func DigestPlain(payload []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(payload) // never fails
	return h.Sum64()
}

// ReadPlain reads a payload that is delivered as it was published.
func ReadPlain(payload []byte) (Content, error) {
	key, err := findKey(string(payload))
	return Content{Key: key, Digest: DigestPlain(payload)}, err
}

// ReadEnvelope reads a message of Mynah as PROTOCOL.md describes it. An archived
// one has no prev.
func ReadEnvelope(b []byte, archived bool) (Content, error) {
	var c Content
	var e struct {
		Seq  *uint64 `json:"seq"`
		Prev *uint64 `json:"prev"`
		From string  `json:"from"`
		To   string  `json:"to"`
		TS   *int64  `json:"ts"`
		Type string  `json:"type"`
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return c, fmt.Errorf("%w: %.80q", err, b)
	}
	if e.Seq == nil || *e.Seq == 0 || e.TS == nil || e.From == "" || e.To == "" || e.Type == "" {
		return c, fmt.Errorf("an envelope without seq, ts, from, to or type: %.120q", b)
	}
	if (e.Prev == nil) != archived {
		return c, fmt.Errorf("prev is there or missing where it must not be: %.120q", b)
	}
	c.Seq, c.From, c.To = *e.Seq, e.From, e.To
	if e.Prev != nil {
		c.Prev = *e.Prev
	}
	fields := map[string]any{}
	if err := json.Unmarshal(b, &fields); err != nil {
		return c, err
	}
	for _, own := range []string{"seq", "prev", "from", "to", "ts"} {
		delete(fields, own)
	}
	c.Digest = Digest(fields)
	text, err := bodyText(e.Type, fields["body"])
	if err != nil {
		return c, err
	}
	c.Key, err = findKey(text)
	return c, err
}

func bodyText(kind string, body any) (string, error) {
	switch body := body.(type) {
	case string:
		if kind != "binary" {
			return body, nil
		}
		b, err := base64.StdEncoding.DecodeString(body)
		return string(b), err
	case map[string]any:
		if text, ok := body["text"].(string); ok {
			return text, nil
		}
	}
	return "", errors.New("a body without text")
}
