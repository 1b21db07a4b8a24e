package pgdial

import (
	"strconv"
	"strings"
	"time"
)

// units are PostgreSQL's of time (config.sgml, "Parameter Names and Values").
var units = map[string]time.Duration{
	"us": time.Microsecond, "ms": time.Millisecond, "s": time.Second,
	"min": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
}

// parseValue returns the value of a setting as a whole number of the unit. A number
// without a unit, such as "60", is in this unit; "60s" and "1min" are converted. An
// invalid or negative value is 0.
func parseValue(text string, unit time.Duration) int64 {
	text = strings.Trim(strings.TrimSpace(text), "'")
	digits := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if digits < 0 {
		digits = len(text)
	}
	value, err := strconv.ParseFloat(text[:digits], 64)
	if err != nil {
		return 0
	}
	if name := strings.TrimSpace(text[digits:]); name != "" {
		of, ok := units[name]
		if !ok {
			return 0
		}
		value *= float64(of) / float64(unit)
	}
	if value > 1<<31 {
		return 1 << 31
	}
	return int64(value)
}

// parseOptions returns the settings in a connection's options: -c name=value, -cname=value
// and --name=value, with a backslash before a space that does not end one.
func parseOptions(text string) map[string]string {
	settings := map[string]string{}
	var words []string
	var word strings.Builder
	escaped := false
	for _, r := range text + " " {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\':
			escaped = true
		case r == ' ' || r == '\t' || r == '\n' || r == '\r' || r == '\f' || r == '\v':
			if word.Len() > 0 {
				words = append(words, word.String())
				word.Reset()
			}
		default:
			word.WriteRune(r)
		}
	}
	for i := 0; i < len(words); i++ {
		setting, ok := strings.CutPrefix(words[i], "--")
		if !ok {
			if setting, ok = strings.CutPrefix(words[i], "-c"); !ok {
				continue
			}
			if setting == "" && i+1 < len(words) {
				i++
				setting = words[i]
			}
		}
		name, value, _ := strings.Cut(setting, "=")
		settings[strings.ToLower(strings.ReplaceAll(name, "-", "_"))] = value
	}
	return settings
}
