package displaytext_test

import (
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"mynah/chat"
	"mynah/people/displaytext"
)

// Guards against names that show nothing: whoever has one cannot be told from others,
// nor from a gap in the page.
func TestNamesThatShowNothing(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		" ", "  ", "\u3000", "\u00a0", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u2002\u2003\u2009", "\u1680", "\u202f\u205f",
		"\u00ad", "\u115f", "\u1160", "\u3164", "\uffa0", "\u2800\u2800", "\u200e", "\u200f", "\u061c", "\u180e", "\u180b", "\u17b4", "\u034f",
		"\u0301", "\u0301\u0302", "\u20dd", "\ufe0f", "\u200d\ufe0f", "\U000e0100", "\U000e0067\U000e007f", "\U000e0001", "\u2061\u2062\u2063\u2064",
		"\u206a\u206f", "\ufff9\ufffb", "\U0001d159", "\U0001d173", "\U00013441", "\u2065", "\ufff0", "\u0903", " \u200d \u0301\u3164 ",
		// Refused for being no plain text.
		"\t", "\n", "\u2028", "\u202a", "\u202e", "\u2066\u2069", "\u0000", "\u0085",
	} {
		if got, err := displaytext.Name("A name", name); !refused(err) {
			t.Errorf("Name(%+q) = %+q, %v; want a refusal", name, got, err)
		}
		if got := displaytext.CleanName(name, 64); got != "" {
			t.Errorf("CleanName(%+q) = %+q, want none", name, got)
		}
	}
}

func refused(err error) bool {
	refusal, ok := errors.AsType[*chat.Error](err)
	return ok && refusal.Code == chat.CodeInvalid
}

// What shows nothing is cut from the ends and stays in the middle; what makes a sign is
// left with it.
func TestNames(t *testing.T) {
	t.Parallel()
	const (
		family    = "👨\u200d👩\u200d👧"
		heart     = "❤\ufe0f"
		england   = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
		chillu    = "ന\u0d4d\u200d" // Malayalam: virama and joiner
		keycap    = "1\ufe0f\u20e3"
		decompose = "e\u0301"
	)
	for name, want := range map[string]string{
		"": "", "Anna": "Anna", "安娜": "安娜", " Anna\u3000": "Anna", "\u00a0安 娜\u2003": "安 娜", "\u200bx\u200b": "x", "\ufeffAnna\u2060": "Anna",
		"a\u200bb": "a\u200bb", "\u3164x\u3164": "x", "x\u2800": "x", "\u200fשלום\u200f": "שלום", "\u0301a": "a", "x\u00ad": "x", "0": "0", ".": ".", "★": "★",
		family: family, " " + family + " ": family, family + "\u200d": family, heart: heart, heart + " ": heart, heart + "\u200d": heart,
		england: england, england + "\u200b": england, "a\U000e0067\U000e007f": "a", "\U0001f3f4\U000e007f": "\U0001f3f4",
		"\U0001f3f4\U000e0067": "\U0001f3f4",
		chillu:                 chillu, chillu + "\u200b": chillu, "می\u200cخواهم": "می\u200cخواهم", "x\u200c": "x",
		keycap: keycap, decompose: decompose, decompose + "\u3000": decompose, "\u0600": "\u0600", "\ue000": "\ue000",
	} {
		if got, err := displaytext.Name("A name", name); err != nil || got != want {
			t.Errorf("Name(%+q) = %+q, %v; want %+q", name, got, err, want)
		}
		if got := displaytext.CleanName(name, 64); got != want {
			t.Errorf("CleanName(%+q) = %+q, want %+q", name, got, want)
		}
	}
	if got := displaytext.CleanName("\u3000ab \u200bc", 4); got != "ab" {
		t.Errorf("cut where it shows nothing: %+q", got)
	}
}

// Whatever Name takes, it takes again as it is, it shows something, and nothing blank is
// at its ends.
func FuzzName(f *testing.F) {
	for _, name := range []string{"Anna", " 安娜\u3000", "👨\u200d👩\u200d👧", "\u200d", "e\u0301 ", "\U0001f3f4\U000e0067\U000e007f", "\xff"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, text string) {
		name, err := displaytext.Name("A name", text)
		if clean := displaytext.CleanName(text, 64); utf8.ValidString(text) && err == nil && utf8.RuneCountInString(text) <= 64 &&
			!strings.ContainsRune(text, utf8.RuneError) && clean != name {
			t.Fatalf("CleanName(%+q) = %+q, Name %+q", text, clean, name)
		}
		if err != nil || text == "" {
			return
		}
		if again, err := displaytext.Name("A name", name); err != nil || again != name {
			t.Fatalf("Name(%+q) = %+q, then %+q, %v", text, name, again, err)
		}
		// What no Unicode of ours knows may be an emoji of a later one.
		if !strings.ContainsFunc(name, func(c rune) bool { return !unicode.In(c, unicode.Z, unicode.M, unicode.Cc) }) || strings.TrimSpace(name) != name {
			t.Fatalf("Name(%+q) = %+q", text, name)
		}
	})
}
