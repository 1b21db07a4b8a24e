package authhook

import (
	"strings"
	"unicode/utf8"
)

// maxTopicLen is the longest topic name or filter, in bytes (MQTT 5 section
// 4.7.3).
const maxTopicLen = 65535

const sharePrefix = "$share/"

// validFilter reports whether s is a topic filter (MQTT 5 section 4.7.1): '#'
// stands alone in the last level, '+' alone in any.
func validFilter(s string) bool {
	if !validText(s) {
		return false
	}
	for rest, more := s, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if level == "#" && more || len(level) > 1 && strings.ContainsAny(level, "+#") {
			return false
		}
	}
	return true
}

// validName reports whether s is a topic name: text without wildcards.
func validName(s string) bool {
	return validText(s) && !strings.ContainsAny(s, "+#")
}

// validText checks what names and filters have in common (MQTT 5 section 4.7.3).
func validText(s string) bool {
	return s != "" && len(s) <= maxTopicLen && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// covers reports whether every topic that filter matches is matched by allowed,
// both being valid filters. For a topic name in place of filter it says whether
// allowed matches it. A wildcard in the first level never matches a topic that
// begins with '$' (MQTT 5 section 4.7.2).
func covers(allowed, filter string) bool {
	a, aRest, aMore := strings.Cut(allowed, "/")
	f, fRest, fMore := strings.Cut(filter, "/")
	if (a == "#" || a == "+") && strings.HasPrefix(f, "$") {
		return false
	}
	// A topic has at least one level, so '#' in the first one is "+/#".
	if a == "#" {
		return true
	}
	if f == "#" {
		f, fRest, fMore = "+", "#", true
	}
	for {
		if a != "+" && a != f { // f may be '+', which no literal covers
			return false
		}
		if !aMore {
			return !fMore
		}
		a, aRest, aMore = strings.Cut(aRest, "/")
		if a == "#" { // also matches its parent
			return true
		}
		if !fMore {
			return false
		}
		f, fRest, fMore = strings.Cut(fRest, "/")
		if f == "#" { // it matches the parent level, which allowed does not
			return false
		}
	}
}

// coveredByAny reports whether one of the allowed filters covers the filter.
func coveredByAny(allowed []string, filter string) bool {
	for _, a := range allowed {
		if covers(a, filter) {
			return true
		}
	}
	return false
}

// unshare splits $share/<group>/<filter> (MQTT 5 section 4.8.2) and returns the
// inner filter. ok is false if s begins like a shared subscription and is none.
func unshare(s string) (filter string, shared, ok bool) {
	rest, shared := strings.CutPrefix(s, sharePrefix)
	if !shared {
		return s, false, s != strings.TrimSuffix(sharePrefix, "/")
	}
	group, filter, ok := strings.Cut(rest, "/")
	return filter, true, ok && group != "" && filter != "" && !strings.ContainsAny(group, "+#")
}
