package api

import (
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// maxDepth is how deep JSON may nest in a request, as in messages.
const maxDepth = 32

var (
	errNUL   = errors.New("a string holds U+0000, which cannot be stored")
	errDepth = errors.New("nested deeper than 32 levels")
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
			return storable(*whole, maxDepth)
		}
		return nil
	},
}

func encodeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false) // the answer is never HTML: the type says so, and nosniff
	return e.Encode(v)
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
