package authhook_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"mynah/authhook"
)

func TestValidFilter(t *testing.T) {
	t.Parallel()
	for _, f := range []string{"a", "/", "//", "a/", "/a", "#", "+", "+/+", "a/#", "/#", "+/#", "a/+/b", "$SYS/#", "玛/丽", " "} {
		if !authhook.ValidFilter(f) {
			t.Errorf("%q is a filter", f)
		}
	}
	for _, f := range []string{"", "#/", "a/#/b", "a#", "#a", "a+", "+a", "a/b+/c", "##", "++", "a\x00", "\xff", strings.Repeat("a", 65536)} {
		if authhook.ValidFilter(f) {
			t.Errorf("%q is no filter", f)
		}
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		allowed, filter string
		want            bool
	}{
		{"#", "#", true},
		{"+/#", "#", true},
		{"#", "+/#", true},
		{"#", "a/b/c", true},
		{"#", "$SYS/x", false},
		{"+", "$SYS", false},
		{"+/x", "$SYS/x", false},
		{"$SYS/#", "$SYS/x", true},
		{"$SYS/#", "#", false},
		{"a/#", "a", true},
		{"a/#", "a/#", true},
		{"a/#", "a/+/b/#", true},
		{"a/+/#", "a/#", false}, // a itself
		{"a/+", "a/#", false},
		{"a/+", "a/+", true},
		{"a/+", "a/b", true},
		{"a/b", "a/+", false},
		{"a/+", "a", false},
		{"a/+", "a/", true},
		{"+", "/", false},
		{"+/+", "/", true},
		{"a", "A", false},
		{"a", "#", false},
		{"+", "#", false},
		{"+", "+", true},
		{"+/a/#", "+/a", true},
		{"b/#", "a/#", false},
		{"a/b/#", "a/#", false},
	} {
		if got := authhook.Covers(tc.allowed, tc.filter); got != tc.want {
			t.Errorf("%q covers %q: got %v", tc.allowed, tc.filter, got)
		}
	}
}

// matches is section 4.7 of MQTT 5 once more, written another way: as sets of
// levels, recursively.
func matches(filter, topic []string) bool {
	switch {
	case len(filter) > 0 && filter[0] == "#":
		return true
	case len(filter) == 0 || len(topic) == 0:
		return len(filter) == len(topic)
	case filter[0] == "+" || filter[0] == topic[0]:
		return matches(filter[1:], topic[1:])
	}
	return false
}

func matchesTopic(filter, topic string) bool {
	if topic[:min(1, len(topic))] == "$" && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	return matches(strings.Split(filter, "/"), strings.Split(topic, "/"))
}

// topicsUpTo enumerates all topics of at most depth levels over the alphabet.
func topicsUpTo(depth int, alphabet []string) []string {
	var all []string
	level := []string{}
	for d := range depth {
		var next []string
		for _, a := range alphabet {
			if d == 0 {
				next = append(next, a)
				continue
			}
			for _, prefix := range level {
				next = append(next, prefix+"/"+a)
			}
		}
		level = next
		all = append(all, level...)
	}
	return all
}

// TestCoversIsContainment compares covers with its definition, by enumeration:
// every topic that the filter matches is matched by the allowed one. The topics
// have a level more than the filters and one word that no filter has, so that
// two different filters always differ in one of them. "" counts as a topic of one
// empty level here, though MQTT knows none so short: "/#" is wider than "/+/#".
func TestCoversIsContainment(t *testing.T) {
	t.Parallel()
	topics := topicsUpTo(5, []string{"a", "b", "", "$s", "z"})
	word := rapid.SampledFrom([]string{"a", "b", "", "$s", "+"})
	filter := rapid.Custom(func(t *rapid.T) string {
		levels := rapid.SliceOfN(word, 0, 4).Draw(t, "levels")
		if len(levels) == 0 || rapid.Bool().Draw(t, "hash") && len(levels) < 4 {
			levels = append(levels, "#")
		}
		if f := strings.Join(levels, "/"); f != "" {
			return f
		}
		return "+"
	})
	rapid.Check(t, func(t *rapid.T) {
		allowed, asked := filter.Draw(t, "allowed"), filter.Draw(t, "filter")
		if rapid.Bool().Draw(t, "related") { // two at random are rarely covered
			levels := strings.Split(allowed, "/")
			for i, l := range levels {
				if rapid.Bool().Draw(t, "change") && (l == "+" || l == "#") {
					levels[i] = word.Draw(t, "word")
				}
			}
			if related := strings.Join(levels, "/"); related != "" {
				asked = related
			}
		}
		want := true
		for _, topic := range topics {
			if matchesTopic(asked, topic) && !matchesTopic(allowed, topic) {
				want = false
				break
			}
		}
		if got := authhook.Covers(allowed, asked); got != want {
			t.Fatalf("%q covers %q: got %v, want %v", allowed, asked, got, want)
		}
	})
}

// TestCoversMatchesTopics: with a topic for a filter, covers is matching.
func TestCoversMatchesTopics(t *testing.T) {
	t.Parallel()
	topics := topicsUpTo(4, []string{"a", "", "$s"})
	for _, allowed := range topicsUpTo(4, []string{"a", "", "$s", "+"}) {
		for _, f := range []string{allowed, allowed + "/#"} {
			if f == "" {
				continue
			}
			for _, topic := range topics {
				if authhook.Covers(f, topic) != matchesTopic(f, topic) {
					t.Errorf("%q matches %q: got %v", f, topic, authhook.Covers(f, topic))
				}
			}
		}
	}
}
