package chat

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// idRule is what an id is, in the words of PROTOCOL.md.
const idRule = "ids are 1 to 64 characters of A-Z a-z 0-9 _ . ~ -"

// Misnamed returns what is wrong with a topic name, or a topic filter, that is meant to be
// one of the chat's and is none, and the remedy. It returns "" for one of the chat's, and
// for a name that has nothing to do with the chat. What it returns is bounded and without
// control characters, whatever the name.
//
// A name outside the chat may be meant (users/alice) and be allowed by an acl: it is for
// those to ask that have refused the name.
func Misnamed(name string) string {
	if meant := meantTopic(name); meant == name {
		return ""
	} else if meant != "" {
		return Shown(name) + " is no topic of the chat; did you mean " + meant + "?"
	}
	switch {
	case strings.EqualFold(name, "/token"):
		return Shown(name) + " is no topic of the chat; did you mean " + RenewTopic + "? A shell takes $mynah for a variable unless it is in single quotes"
	case name != RenewTopic && near(strings.Trim(name, "/"), RenewTopic, 2):
		return Shown(name) + " is no topic of the chat; did you mean " + RenewTopic + "?"
	}
	first, rest, more := strings.Cut(strings.TrimLeft(name, "/"), "/")
	if first == "dm" && strings.Count(rest, "/") == 1 {
		return "dm/<a>/<b> names a conversation and is no topic; a direct message goes to user/<id> of the other one"
	}
	family := familyOf(first)
	if family == "" || family != first && !more {
		return ""
	}
	id, below, deeper := strings.Cut(rest, "/")
	switch fault := idFault(id); {
	case fault != "" && family != first:
		return Shown(name) + " is no topic of the chat; did you mean " + family + "/<id>? " + fault
	case fault != "":
		return fault
	}
	if !deeper {
		return "" // a filter
	}
	if family == "presence" {
		return "there is nothing below presence/<id>; leave " + Shown("/"+below) + " out"
	}
	topics := family + "/<id> and " + family + "/<id>/signal"
	if family == "user" {
		topics = "user/<id>, user/<id>/signal and user/<id>/error"
	}
	return fmt.Sprintf("there is no %s/<id>/%s; there are %s", family, strings.Trim(Shown(below), `"`), topics)
}

// families are the first levels of the chat's topics.
var families = []string{"user", "group", "presence"}

// familyOf returns the first level that a word is or is likely to be meant for, "" if there
// is none.
func familyOf(word string) string {
	i := slices.IndexFunc(families, func(f string) bool { return near(word, f, 1) })
	if i < 0 {
		return ""
	}
	return families[i]
}

// idFault returns why an id is none, "" if it is one or a wildcard.
func idFault(id string) string {
	switch {
	case id == "":
		return "the id is missing; " + idRule
	case id == "+" || id == "#" || ValidID(id):
		return ""
	}
	for i, r := range id {
		_, width := utf8.DecodeRuneInString(id[i:])
		switch {
		case r == utf8.RuneError && width == 1:
			return fmt.Sprintf("%s is no id, because of the byte 0x%02X; %s", Shown(id), id[i], idRule)
		case r >= utf8.RuneSelf || !idByte[byte(r)]:
			return fmt.Sprintf("%s is no id, because of %s (U+%04X); %s", Shown(id), strconv.QuoteRune(r), r, idRule)
		}
	}
	return fmt.Sprintf("%s is no id, because it has %d characters; %s", Shown(id), len(id), idRule)
}

// meantTopic returns the topic or filter of the chat that a name is, or is likely to be meant
// for, "" if there is none.
func meantTopic(name string) string {
	if len(name) > 256 { // longer than any, with what may be wrong with it
		return ""
	}
	var levels []string
	for level := range strings.SplitSeq(name, "/") {
		if level = strings.TrimSpace(level); level != "" {
			levels = append(levels, level)
		}
	}
	if len(levels) < 2 || len(levels) > 3 {
		return ""
	}
	levels[0] = familyOf(levels[0])
	if levels[0] == "" || idFault(levels[1]) != "" {
		return ""
	}
	if len(levels) == 3 {
		switch last := levels[2]; {
		case levels[0] == "presence" || levels[1] == "#":
			return ""
		case near(last, "signal", 2):
			levels[2] = "signal"
		case levels[0] == "user" && near(last, "error", 1):
			levels[2] = "error"
		default:
			return ""
		}
	}
	return strings.Join(levels, "/")
}

// near reports whether a word is another one but for its case and a few letters that are
// too many, missing or wrong.
func near(word, wanted string, letters int) bool {
	if max(len(word), len(wanted))-min(len(word), len(wanted)) > letters {
		return false
	}
	word = strings.ToLower(word)
	// The row of Levenshtein's table for as much of word as has been looked at.
	row := make([]int, len(wanted)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(word) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(wanted) {
			cost := 1
			if word[i] == wanted[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(wanted)] <= letters
}

// Shown returns what a client has sent as reasons and log lines show it: quoted, so that
// what is not visible is, and cut after 64 bytes.
func Shown(s string) string {
	const most = 64
	if len(s) <= most {
		return strconv.Quote(s)
	}
	cut := most
	for cut > most-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.Quote(s[:cut]) + "…"
}
