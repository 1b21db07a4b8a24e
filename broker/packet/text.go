package packet

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// sharePrefix begins the filter of a shared subscription (MQTT 5, 4.8.2).
const sharePrefix = "$share/"

// validUTF8 reports whether b is a UTF-8 encoded string (MQTT 5, 1.5.4): without U+0000 and
// without surrogates.
func validUTF8(b []byte) bool { return utf8.Valid(b) && bytes.IndexByte(b, 0) < 0 }

// ValidName reports whether b may name something: a topic, a filter, a client or a user. A
// name must not have control characters, U+0001 to U+001F and U+007F to U+009F, since they
// are invisible and a receiver may refuse them (MQTT 5, 1.5.4: "SHOULD NOT"). Other text may
// have them, such as a user property of several lines.
func ValidName[T string | []byte](b T) bool {
	ascii := true
	for i := range len(b) {
		switch c := b[i]; {
		case c < 0x20 || c == 0x7F:
			return false
		case c >= 0x80:
			ascii = false
		}
	}
	if ascii {
		return true
	}
	for i := 0; i < len(b); {
		r, n := decodeRune(b[i:])
		if r == utf8.RuneError && n <= 1 || r >= 0x7F && r <= 0x9F {
			return false
		}
		i += n
	}
	return true
}

func decodeRune[T string | []byte](b T) (rune, int) {
	var first [utf8.UTFMax]byte
	return utf8.DecodeRune(first[:copy(first[:], b)])
}

// ValidTopic reports whether b is a topic name that can be published to (MQTT 5, 4.7).
func ValidTopic[T string | []byte](b T) bool {
	if len(b) == 0 {
		return false // [MQTT-4.7.3-1]
	}
	for i := range len(b) {
		if b[i] == '+' || b[i] == '#' {
			return false // [MQTT-3.3.2-2]
		}
	}
	return ValidName(b)
}

// ValidFilter reports whether a topic filter is one (MQTT 5, 4.7 and 4.8.2).
func ValidFilter(filter string) bool {
	if !ValidName(filter) {
		return false
	}
	if filter+"/" == sharePrefix {
		return false // the share name or the filter is missing
	}
	if shared, ok := strings.CutPrefix(filter, sharePrefix); ok {
		var share string
		if share, filter, _ = strings.Cut(shared, "/"); share == "" || strings.ContainsAny(share, "+#") {
			return false // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
		}
	}
	if filter == "" {
		return false // [MQTT-4.7.3-1]
	}
	for {
		level, rest, more := strings.Cut(filter, "/")
		switch {
		case len(level) > 1 && strings.ContainsAny(level, "+#"):
			return false // [MQTT-4.7.1-1], [MQTT-4.7.1-2]
		case level == "#" && more:
			return false // [MQTT-4.7.1-1]
		case !more:
			return true
		}
		filter = rest
	}
}
