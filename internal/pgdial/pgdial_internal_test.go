package pgdial

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The values of our side, in seconds, seconds, a count and milliseconds.
func TestSettle(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		theirs map[string]string
		want   []int64
	}{
		{nil, []int64{5, 3, 3, 12000}},
		{map[string]string{"tcp_keepalives_idle": "1min"}, []int64{60, 3, 3, 69000}},
		{map[string]string{"tcp_keepalives_idle": "60", "keepalives_idle": "30"}, []int64{30, 3, 3, 39000}},
		{map[string]string{"keepalives_count": "1"}, []int64{5, 3, 1, 12000}}, // not less than ours
		{map[string]string{"tcp_keepalives_idle": "0"}, []int64{0, 3, 3, 0}},  // the system's, and so for the rest
		{map[string]string{"tcp_user_timeout": "30s"}, []int64{5, 3, 3, 30000}},
		{map[string]string{"tcp_user_timeout": "0", "tcp_keepalives_idle": "60"}, []int64{60, 3, 3, 0}},
		{map[string]string{"tcp_user_timeout": "what"}, []int64{5, 3, 3, 0}},
	} {
		values := keepaliveValues(test.theirs, "tcp_")
		got := []int64{values[idle], values[interval], values[count], values[userTimeout]}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", test.theirs, diff)
		}
	}
}

func TestParseOptions(t *testing.T) {
	t.Parallel()
	got := parseOptions(`-c a=1 -cB=2  --c-d=x\ y -c search_path=a,b -j 5 --e`)
	want := map[string]string{"a": "1", "b": "2", "c_d": "x y", "search_path": "a,b", "e": ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseValue(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		unit time.Duration
		want int64
	}{
		{"60", time.Second, 60},
		{" 2 min", time.Second, 120},
		{"1500ms", time.Second, 1},
		{"1.5s", time.Millisecond, 1500},
		{"'3d'", time.Hour, 72},
		{"-1", time.Second, 0},
		{"", time.Second, 0},
		{"5 weeks", time.Second, 0},
		{"99999999999999999999", time.Second, 1 << 31},
	} {
		if got := parseValue(test.text, test.unit); got != test.want {
			t.Errorf("%q is %d, want %d", test.text, got, test.want)
		}
	}
}
