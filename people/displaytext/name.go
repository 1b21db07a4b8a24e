package displaytext

import (
	"slices"
	"unicode"

	"golang.org/x/text/unicode/norm"

	"mynah/chat"
)

// Name returns the text as a name that people see, of a person, a group, a device: what
// isVisible nothing at its ends is cut. It refuses what Check refuses, and a text that is
// not empty and shows nothing at all. what names it in the refusal. The empty text stays
// for the caller to judge.
func Name(what, text string) (string, error) {
	if err := Check(what, text); err != nil {
		return "", err
	}
	if text == "" {
		return "", nil
	}
	name := trim(text)
	if name == "" {
		return "", chat.Refuse(chat.CodeInvalid, what+" shows nothing; give one with letters, digits or signs.")
	}
	return name, nil
}

// CleanName makes a name that others have written into one that Name takes, of at most
// most characters, or into "".
func CleanName(text string, most int) string { return trim(Clean(trim(text), most)) }

// trim cuts what shows nothing from both ends of a text, and all of a text that shows
// nothing. What belongs to the last sign that shows stays, since the sign is another
// without it: a combining mark, the variation selector of an emoji, the tags of a flag
// (RGI emoji tag sequences), and a joiner after a virama (RFC 5892 appendix A.1).
func trim(text string) string {
	runes := []rune(text)
	first := slices.IndexFunc(runes, isVisible)
	if first < 0 {
		return ""
	}
	// A mark before the first sign has nothing to stand on, and may show nothing.
	runes = runes[first:]
	end := len(runes)
	for end > 1 && isBlank(runes[end-1]) && !belongsToSign(runes[:end]) {
		end--
	}
	return string(runes[:end])
}

const (
	blackFlag   = '\U0001f3f4'
	cancelTag   = '\U000e007f'
	firstTag    = '\U000e0020'
	zeroNonJoin = '\u200c'
	zeroJoin    = '\u200d'
	viramaClass = 9 // canonical combining class
)

// belongsToSign reports whether the last of the characters, which is blank, belongs to a sign
// before it. There is more than one.
func belongsToSign(runes []rune) bool {
	last, before := runes[len(runes)-1], runes[:len(runes)-1]
	switch last {
	case zeroJoin, zeroNonJoin:
		return norm.NFC.PropertiesString(string(before[len(before)-1])).CCC() == viramaClass
	case cancelTag:
		for i, c := range slices.Backward(before) {
			if c < firstTag || c >= cancelTag {
				return c == blackFlag && i < len(before)-1
			}
		}
	}
	return false
}

// isVisible reports whether the character shows something by itself. One that our tables do
// not know may be an emoji of a later Unicode.
func isVisible(c rune) bool {
	return !isBlank(c) && !unicode.Is(unicode.M, c) && !unicode.Is(unicode.Cc, c)
}

// isBlank reports whether the character shows nothing, or only room, wherever it stands.
// Marks are not blank: they show something on what they stand on.
func isBlank(c rune) bool {
	switch c {
	case '\u2800', // braille pattern without a dot
		'\U0001d159',               // musical null notehead
		'\U00013441', '\U00013442', // Egyptian blanks
		'\u034f', '\u17b4', '\u17b5': // combining grapheme joiner, Khmer inherent vowels: marks that never show
		return true
	}
	if unicode.Is(unicode.Prepended_Concatenation_Mark, c) {
		return false // Arabic number signs and the like: format characters that show
	}
	return unicode.In(c, unicode.White_Space, unicode.Z, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point)
}
