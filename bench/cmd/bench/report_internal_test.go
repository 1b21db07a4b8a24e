package main

import (
	"io"
	"strings"
	"testing"
)

func results(key string, values map[string][]float64) *result {
	r := findRow(key)
	res := &result{row: r, Key: key, Unit: r.unit, Goal: r.goal, Samples: map[string][]sample{}}
	for name, vs := range values {
		for _, v := range vs {
			res.Samples[name] = append(res.Samples[name], sample{Value: v})
		}
	}
	return res
}

// Guards against a table that reports a goal as met when it is not.
func TestVerdict(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		res        *result
		ratio, met string
	}{
		"above a ratio":      {results("flow", map[string][]float64{mynah: {90, 100, 500}, mosquitto: {20, 25, 21}}), "4.76 × mosquitto", "yes"},
		"below a ratio":      {results("flow", map[string][]float64{mynah: {90}, mosquitto: {30}}), "3.00 × mosquitto", "no"},
		"one of two":         {results("fan0", map[string][]float64{mynah: {200}, mosquitto: {10}, rawTCP: {400}}), "20.00 × mosquitto, 0.50 × raw TCP", "no"},
		"both":               {results("fan0", map[string][]float64{mynah: {280}, mosquitto: {10}, rawTCP: {400}}), "28.00 × mosquitto, 0.70 × raw TCP", "yes"},
		"below an upper one": {results("idle", map[string][]float64{mynah: {20}, mosquitto: {1}}), "–", "yes"},
		"above an upper one": {results("idle", map[string][]float64{mynah: {24.1}}), "–", "no"},
		"nothing to compare": {results("flow", map[string][]float64{mynah: {90}}), "–", ""},
		"nothing measured":   {results("flow", map[string][]float64{mosquitto: {90}}), "–", ""},
	} {
		if ratio, met := c.res.verdict(); ratio != c.ratio || met != c.met {
			t.Errorf("%s: %q, %q; want %q, %q", name, ratio, met, c.ratio, c.met)
		}
	}
	failed := results("flow", map[string][]float64{mynah: {90}, mosquitto: {10}})
	failed.Failures = []string{"lost a message"}
	if _, met := failed.verdict(); met != "FAILED" {
		t.Errorf("a row that failed is called %q", met)
	}
}

func TestMarkdown(t *testing.T) {
	t.Parallel()
	res := results("crowd", map[string][]float64{mynah: {120.4, 100, 300}})
	res.Samples[mynah][1].add("broker CPU", 2.5, "µs/delivery")
	res.Samples[mynah][0].add("broker CPU", 3.5, "µs/delivery")
	r := &report{Results: []*result{res}, Command: "go run ./bench/cmd/bench --rows crowd"}
	md := r.markdown()
	for _, want := range []string{"| crowd |", "| 120 ms |", "| yes |", "broker CPU 3 µs/delivery", "--rows crowd"} {
		if !strings.Contains(md, want) {
			t.Errorf("the report does not say %q:\n%s", want, md)
		}
	}
}

func TestHuman(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 0.123: "0.12", 2: "2", 12.34: "12.3", 123.4: "123", 1234.5: "1,234", 5_000_000: "5,000,000"} {
		if got := formatNumber(v); got != want {
			t.Errorf("human(%g) = %q, want %q", v, got, want)
		}
	}
}

// An error on the command line is reported before any server starts.
func TestBadFlagsAreRefused(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--rows", "flow,nonsense"}, {"--targets", "emqx"}, {"--rounds", "0"}, {"--duration", "10ms"}, {"flow"}, {"--bin", "/nowhere/mynah"},
	} {
		if err := run(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}
