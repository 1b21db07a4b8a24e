package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
)

// maxDepth is how deep JSON may nest in a request, as in messages.
const maxDepth = 32

var (
	errNUL   = errors.New("a string holds U+0000, which cannot be stored")
	errDepth = errors.New("nested deeper than 32 levels")
	errHalf  = errors.New("a string holds half of a surrogate pair, which cannot be stored")
	errUTF8  = errors.New("not UTF-8")
)

// strictJSON is huma's JSON, less what PostgreSQL cannot hold. huma reads every
// body twice, first into an any to validate it: there the strings are checked.
var strictJSON = huma.Format{
	Marshal: encodeJSON,
	Unmarshal: func(data []byte, v any) error {
		if err := json.Unmarshal(data, v); err != nil {
			// The decoder's own words name Go types; they are no use to clients.
			if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
				return errors.New("not JSON: " + syntax.Error())
			}
			return errors.New("a value of the wrong kind or out of range")
		}
		if whole, ok := v.(*any); ok {
			// The decoder makes U+FFFD of both, without a word.
			switch {
			case !utf8.Valid(data):
				return errUTF8
			case halfPair(data):
				return errHalf
			}
			if err := storable(*whole, maxDepth); err != nil {
				return err
			}
			return noKeyTwice(data)
		}
		return nil
	},
}

func encodeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false) // the answer is never HTML: the type says so, and nosniff
	return e.Encode(v)
}

// noKeyTwice returns an error that names a key that an object of the JSON text has twice,
// at any depth. Of two, some readers take the first and others the last, so that whoever
// looks at a body may see another one than the server.
func noKeyTwice(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	// keys are those of each object that is open, nil for an array.
	var keys []map[string]bool
	name := false // whether what comes next in the innermost is a name
	for {
		token, err := d.Token()
		if err != nil {
			return nil // the end: it was parsed before
		}
		innermost := len(keys) - 1
		switch t := token.(type) {
		case json.Delim:
			switch t {
			case '{':
				keys, name = append(keys, map[string]bool{}), true
				continue
			case '[':
				keys, name = append(keys, nil), false
				continue
			}
			keys = keys[:innermost]
			innermost--
		case string:
			if name {
				if keys[innermost][t] {
					return fmt.Errorf("the key %s is there twice", quote(t))
				}
				keys[innermost][t], name = true, false
				continue
			}
		}
		name = innermost >= 0 && keys[innermost] != nil
	}
}

// maxQuoted is how much of a client's own words an answer repeats, in characters.
const maxQuoted = 64

// quote quotes a client's word for an answer.
func quote(s string) string {
	if short := []rune(s); len(short) > maxQuoted {
		s = string(short[:maxQuoted]) + "…"
	}
	return strconv.Quote(s)
}

// halfPair reports whether a string of the JSON text has an escaped surrogate without
// its other half (RFC 8259 section 8.2).
func halfPair(text []byte) bool {
	high := false // the escape just before was the first half of a pair
	for i := 0; i < len(text); {
		unit, size := rune(0), 1
		if text[i] == '\\' && i+1 < len(text) {
			size = 2
			if text[i+1] == 'u' && i+6 <= len(text) {
				size = 6
				n, _ := strconv.ParseUint(string(text[i+2:i+6]), 16, 16) // valid: the text is JSON
				unit = rune(n)
			}
		}
		low := unit >= 0xdc00 && unit < 0xe000
		if high != low {
			return true
		}
		high = unit >= 0xd800 && unit < 0xdc00
		i += size
	}
	return high
}

// Object is a JSON object of the application's own, as it was written: its numbers may
// be larger than a double.
type Object json.RawMessage

// UnmarshalJSON keeps the text.
func (o *Object) UnmarshalJSON(text []byte) error {
	*o = append((*o)[:0], text...)
	return nil
}

// MarshalJSON returns the text.
func (o Object) MarshalJSON() ([]byte, error) { return o, nil }

// Schema describes it for huma, which checks that it is an object.
func (Object) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}
}

// raw returns the text without white space, nil for nothing.
func (o *Object) raw() (json.RawMessage, error) {
	if o == nil {
		return nil, nil
	}
	var short bytes.Buffer
	if err := json.Compact(&short, *o); err != nil {
		return nil, err // never: it was parsed before
	}
	return short.Bytes(), nil
}

// storable returns nil if PostgreSQL's jsonb and text can hold v, with at most
// depth levels.
func storable(v any, depth int) error {
	switch v := v.(type) {
	case string:
		if strings.ContainsRune(v, 0) {
			return errNUL
		}
	case []any:
		if depth == 0 {
			return errDepth
		}
		for _, item := range v {
			if err := storable(item, depth-1); err != nil {
				return err
			}
		}
	case map[string]any:
		if depth == 0 {
			return errDepth
		}
		for name, item := range v {
			if strings.ContainsRune(name, 0) {
				return errNUL
			}
			if err := storable(item, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}
