// Package displaytext says which text may stand in one line of somebody's page: names,
// notes, reasons. Control characters, line separators and marks of writing direction
// may not, since with them a name could break out of its line or turn round what
// stands beside it. Everything else is for the client to escape.
package displaytext

import (
	"strings"
	"unicode/utf8"

	"mynah/chat"
)

// AllowedRune reports whether c may stand in such a line.
func AllowedRune(c rune) bool {
	switch {
	case c < ' ', c >= 0x7f && c < 0xa0: // C0, DEL, C1
	case c == '\u2028', c == '\u2029': // line and paragraph separator
	case c >= '\u202a' && c <= '\u202e', c >= '\u2066' && c <= '\u2069': // embeddings, overrides, isolates
	default:
		return true
	}
	return false
}

// Check returns nil if all of the text is plain, and a refusal that names what it is
// if not.
func Check(what, text string) error {
	if strings.ContainsFunc(text, func(c rune) bool { return !AllowedRune(c) }) {
		return chat.Refuse(chat.CodeInvalid, what+" has no control characters and no marks of writing direction.")
	}
	return nil
}

// Clean makes text that others have written into plain text of at most most characters,
// without white space around it.
func Clean(text string, most int) string {
	text = strings.TrimSpace(strings.Map(func(c rune) rune {
		if !AllowedRune(c) || c == utf8.RuneError {
			return -1
		}
		return c
	}, text))
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most])
	}
	return text
}
