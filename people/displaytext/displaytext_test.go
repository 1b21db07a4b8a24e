package displaytext_test

import (
	"testing"

	"mynah/people/displaytext"
)

// What Check refuses Clean takes out, and nothing else.
func TestPlain(t *testing.T) {
	t.Parallel()
	for text, clean := range map[string]string{
		"Anna":                      "Anna",
		" 安娜 👩‍💻 ":                  "安娜 👩‍💻",
		"A\u0300 שלום":              "A\u0300 שלום",
		"\u202eevil\u2028x":         "evilx",
		"a\x00b\x1fc\x7fd\u0085e":   "abcde",
		"\u2066a\u2069\u202d\u2029": "a",
		"\xff?":                     "?",
		"12345678901":               "1234567890",
	} {
		if got := displaytext.Clean(text, 10); got != clean {
			t.Errorf("Clean(%q) = %q, want %q", text, got, clean)
		}
		if err := displaytext.Check("A name", displaytext.Clean(text, 10)); err != nil {
			t.Errorf("Check(Clean(%q)): %v", text, err)
		}
	}
	for _, text := range []string{"a\nb", "\u202e", "\u2028", "\u2067x", "\u009b31m"} {
		if displaytext.Check("A name", text) == nil {
			t.Errorf("Check(%q) takes it", text)
		}
	}
}
