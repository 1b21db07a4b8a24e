package chat

import (
	"unicode"
	"unicode/utf8"
)

// visible reports whether UTF-8 text shows something and has nothing in it that does not
// belong into a line of text: no controls, and of the characters without a shape only
// those that emoji are joined with.
func visible(text []byte) bool {
	first, _ := utf8.DecodeRune(text)
	last, _ := utf8.DecodeLastRune(text)
	if unicode.IsSpace(first) || unicode.IsSpace(last) {
		return false
	}
	shown := false
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		text = text[size:]
		switch {
		case joins(r), r == ' ':
		case blank(r) || !unicode.IsPrint(r):
			return false
		case !unicode.IsMark(r):
			shown = true
		}
	}
	return shown
}

// joins reports whether a character makes one emoji of those around it: the zero width
// joiner and the tags of regional flags (Unicode Technical Standard 51).
func joins(r rune) bool { return r == 0x200D || r >= 0xE0020 && r <= 0xE007F }

// blank reports whether a character counts as a letter or a symbol and shows nothing.
func blank(r rune) bool {
	switch r {
	case 0x115F, 0x1160, 0x3164, 0xFFA0, 0x2800: // the fillers of Hangul, the empty Braille cell
		return true
	}
	return false
}
