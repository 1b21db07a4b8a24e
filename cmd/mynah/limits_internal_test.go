package main

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"mynah/broker"
)

// fields calls visit for each field of a struct and of those that it embeds.
func fields(of reflect.Type, visit func(reflect.StructField)) {
	for f := range of.Fields() {
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			fields(f.Type, visit)
			continue
		}
		visit(f)
	}
}

// Guards against defaults that stand twice and then differ: a number in the tag of a flag
// is 0, which is no limit, or is what only the program itself has.
func TestDefaultsStandOnce(t *testing.T) {
	t.Parallel()
	own := map[string]bool{
		"RetainAge": true, // a log without the flag keeps everything
	}
	used := map[string]bool{}
	fields(reflect.TypeFor[Config](), func(f reflect.StructField) {
		value, ok := f.Tag.Lookup("default")
		if name, variable := strings.CutPrefix(value, "${"); variable {
			used[strings.TrimSuffix(name, "}")] = true
			return
		}
		switch f.Type.Kind() { //nolint:exhaustive // the others are no numbers
		case reflect.Int, reflect.Int64, reflect.Float64:
			if ok && value != "0" && !own[f.Name] {
				t.Errorf("%s has the default %s in its tag; take the library's by a variable, see defaults", f.Name, value)
			}
		}
	})
	for name := range defaults {
		if !used[name] {
			t.Errorf("the default %s is of no flag", name)
		}
	}
}

// parsed returns the settings of serve with the arguments.
func parsed(tb testing.TB, args ...string) serveCmd {
	tb.Helper()
	var grammar cli
	parser, err := kong.New(&grammar, grammarOptions...)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := parser.Parse(append([]string{"serve"}, args...)); err != nil {
		tb.Fatal(err)
	}
	return grammar.Serve
}

// What no flag is given for passes, so that no bound can refuse its own default.
func TestDefaultsAreWithinTheirBounds(t *testing.T) {
	t.Parallel()
	s := parsed(t)
	cfg := Config{
		Retention: s.Retention, Web: s.Web, Listeners: s.Listeners, Clients: s.Clients, Database: s.Database, Rights: s.Rights, Metrics: s.Metrics,
		People:       s.People,
		BrokerLimits: s.BrokerLimits, TokenLimits: s.TokenLimits, ArchiverLimits: s.ArchiverLimits,
	}
	if err := cfg.validate(); err != nil {
		t.Error(err)
	}
}

// Each limit has bounds on both sides; a value beyond is refused with the flag's name and
// what to give.
func TestAbsurdLimitsAreRefused(t *testing.T) {
	t.Parallel()
	parser, err := kong.New(&cli{}, grammarOptions...)
	if err != nil {
		t.Fatal(err)
	}
	var limits []*kong.Flag
	for _, command := range parser.Model.Children {
		if command.Name == "serve" {
			for _, f := range command.Flags {
				if f.Group != nil && f.Group.Key == limitsGroup {
					limits = append(limits, f)
				}
			}
		}
	}
	if len(limits) < 25 {
		t.Fatalf("there are %d limits", len(limits))
	}
	data := t.TempDir()
	for _, f := range limits {
		values := []string{"-1", "999999999999999"}
		switch f.Target.Interface().(type) {
		case time.Duration:
			values = []string{"-1s", "1ns", "2000000h"}
		case float64:
			values = []string{"-1", "1e300", "NaN"}
		}
		for _, value := range values {
			status, _, stderr := mustRun(t, nil, "serve", "--data-dir", data, "--jwt-secret", strings.Repeat("s", 32), "--"+f.Name+"="+value)
			if status != exitFailure || !strings.Contains(stderr, "--"+f.Name+": is ") || !strings.Contains(stderr, "; give ") {
				t.Errorf("--%s=%s: status %d: %s", f.Name, value, status, stderr)
			}
		}
	}
}

// What belongs together is refused together.
func TestLimitsThatContradictEachOther(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--min-free-space=60MiB"},
		{"--message-log-memtable=512MiB"},
		{"--max-outbox=512MiB", "--max-outbox-total=256MiB"},
		{"--max-queued-bytes=512MiB"},
		{"--session-expiry=900000h"},
		{"--max-payload=1GiB"},
		{"--max-depth=100000"},
		{"--max-message=1"},
		{"--max-groups=0"},
		{"--max-group-members=-1"},
		{"--invitation-ttl=1s"},
	} {
		status, _, stderr := mustRun(t, nil, append([]string{"serve", "--data-dir", t.TempDir(), "--jwt-secret", strings.Repeat("s", 32)}, args...)...)
		if status != exitFailure || !strings.Contains(stderr, "; ") {
			t.Errorf("%v: status %d: %s", args, status, stderr)
		}
	}
}

// Every limit reaches the library: with another value for each flag, each field that is
// filled has another.
func TestLimitsReachTheBroker(t *testing.T) {
	t.Parallel()
	var usual, other broker.Config
	s := parsed(t)
	s.setLimits(&usual)
	s = parsed(t, "--connect-timeout=3s", "--websocket-ping-interval=0s", "--sys-interval=7s", "--presence-settle=0s",
		"--max-sessions-per-subject=300", "--max-subscriptions-per-session=2000", "--max-wildcards-per-subject=3000", "--max-inflight=10", "--max-outbox=1MiB",
		"--max-outbox-total=2GiB", "--max-queued-messages=5", "--max-queued-bytes=1MiB", "--max-queued-total=64MiB",
		"--max-retained-bytes=1GiB", "--min-free-space=1GiB", "--disk-ballast=0", "--message-log-cache=1MiB", "--message-log-memtable=16MiB")
	s.setLimits(&other)
	if other.PingInterval >= 0 || other.PresenceSettle >= 0 || other.Log.Ballast >= 0 {
		t.Errorf("0 is to be none: %v, %v, %v", other.PingInterval, other.PresenceSettle, other.Log.Ballast)
	}
	compare := func(a, b any) (changed int) {
		va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
		for i := range va.NumField() {
			switch va.Field(i).Kind() { //nolint:exhaustive // limits are numbers
			case reflect.Int, reflect.Int64, reflect.Uint64:
				if va.Field(i).IsZero() {
					continue
				}
				if va.Field(i).Equal(vb.Field(i)) {
					t.Errorf("%s is not changed by its flag", va.Type().Field(i).Name)
				}
				changed++
			}
		}
		return changed
	}
	if n := compare(usual, other) + compare(usual.Log, other.Log); n != 18 {
		t.Errorf("%d fields are filled, want one for each of 18 flags", n)
	}
}

// The limits stay out of the short help and are all in the long one.
func TestHelpAll(t *testing.T) {
	t.Parallel()
	_, short, _ := mustRun(t, nil, "serve", "--help")
	if strings.Contains(short, "--max-inflight") || !strings.Contains(short, "--help-all") || !strings.Contains(short, "What clients may") {
		t.Errorf("--help:\n%s", short)
	}
	status, long, stderr := mustRun(t, nil, "serve", "--help-all")
	if status != exitOK || !strings.Contains(long, "--max-inflight") || !strings.Contains(long, "--mqtt-addr") || !strings.Contains(long, "$SYS/broker") {
		t.Errorf("--help-all: status %d: %s%s", status, stderr, long)
	}
}

func TestBytes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Bytes{"0": 0, "65536": 64 * kib, "64KiB": 64 * kib, "3MiB": 3 * mib, "2GiB": 2 * gib, "1TiB": tib, "-1": -1, "9223372036854775807": math.MaxInt64} {
		if got, err := parseBytes(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
		if again, err := parseBytes(want.String()); err != nil || again != want {
			t.Errorf("%d is written %s and read %d, %v", want, want, again, err)
		}
	}
	for _, text := range []string{"", "KiB", "1KB", "1MB", "1k", "1.5GiB", "9000000TiB", "0x10", "1 KiB", "many"} {
		if got, err := parseBytes(text); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
}
