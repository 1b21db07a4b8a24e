package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"mynah/bench/testbed"
)

// sample is one measurement.
type sample struct {
	Value float64  `json:"value"`
	Extra []metric `json:"extra,omitempty"`
}

type metric struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

func (s *sample) add(name string, value float64, unit string) {
	s.Extra = append(s.Extra, metric{name, value, unit})
}

func (s *sample) extras() string {
	var b strings.Builder
	for _, m := range s.Extra {
		fmt.Fprintf(&b, ", %s %s %s", m.Name, formatNumber(m.Value), m.Unit)
	}
	return b.String()
}

// result is a row with its measurements.
type result struct {
	row      *row
	Key      string              `json:"key"`
	Title    string              `json:"title"`
	Unit     string              `json:"unit"`
	Goal     string              `json:"goal"`
	Samples  map[string][]sample `json:"samples"`
	Failures []string            `json:"failures,omitempty"`
}

// report is a whole run.
type report struct {
	Machine  testbed.Machine `json:"machine"`
	Postgres string          `json:"postgres"`
	Command  string          `json:"command"`
	Fsync50  time.Duration   `json:"fdatasync_p50_ns"`
	Fsync99  time.Duration   `json:"fdatasync_p99_ns"`
	Results  []*result       `json:"results"`
}

func (r *result) median(target string) (float64, bool) {
	var v []float64
	for _, s := range r.Samples[target] {
		v = append(v, s.Value)
	}
	return median(v)
}

func (r *result) extra(target, name string) (float64, string, bool) {
	var v []float64
	unit := ""
	for _, s := range r.Samples[target] {
		for _, m := range s.Extra {
			if m.Name == name {
				v = append(v, m.Value)
				unit = m.Unit
			}
		}
	}
	m, ok := median(v)
	return m, unit, ok
}

func median(v []float64) (float64, bool) {
	if len(v) == 0 {
		return 0, false
	}
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2, true
	}
	return v[len(v)/2], true
}

// verdict returns the ratios and whether the goal is met. met is "" if the
// goal is not a number or if a value is missing.
func (r *result) verdict() (ratio, met string) {
	ours, ok := r.median(mynah)
	if !ok {
		return "–", ""
	}
	good := true
	judged := false
	var parts []string
	for _, g := range r.row.goals {
		value := ours
		if g.extra != "" {
			if value, _, ok = r.extra(mynah, g.extra); !ok {
				continue
			}
		}
		if g.comparedWith != "" {
			theirs, ok := r.median(g.comparedWith)
			if !ok || theirs == 0 {
				continue
			}
			value /= theirs
			parts = append(parts, fmt.Sprintf("%.2f × %s", value, g.comparedWith))
		}
		judged = true
		if g.isMax && value > g.bound || !g.isMax && value < g.bound {
			good = false
		}
	}
	ratio = "–"
	if len(parts) > 0 {
		ratio = strings.Join(parts, ", ")
	}
	switch {
	case len(r.Failures) > 0:
		met = "FAILED"
	case judged && good:
		met = "yes"
	case judged:
		met = "no"
	}
	return ratio, met
}

func (r *report) markdown() string {
	var b strings.Builder
	m := &r.Machine
	dirty := ""
	if m.Dirty {
		dirty = " with changes"
	}
	fmt.Fprintf(&b, "Measured %s on %d cores (%s), Linux %s, %s, commit %s%s, Mosquitto %s, PostgreSQL %s, fdatasync of 4 KiB: median %s, p99 %s. Load generator and servers share the cores. Medians of the rounds.\n\n    %s\n\n",
		m.Time, m.Cores, m.CPU, m.Kernel, m.Go, m.Commit, dirty, m.Mosquitto, r.Postgres,
		r.Fsync50.Round(time.Microsecond), r.Fsync99.Round(time.Microsecond), strings.TrimSpace(r.Command))
	b.WriteString("| row | load | Mynah | Mosquitto | other | ratio | goal | met |\n|---|---|---|---|---|---|---|---|\n")
	for _, res := range r.Results {
		ratio, met := res.verdict()
		other := "–"
		for _, name := range []string{rawTCP, viaCopy} {
			if _, ok := res.median(name); ok {
				other = res.cell(name) + " " + name
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n",
			res.Key, res.Title, res.cell(mynah), res.cell(mosquitto), other, ratio, res.Goal, met)
	}
	b.WriteString("\n| row | server | further figures |\n|---|---|---|\n")
	for _, res := range r.Results {
		for _, name := range []string{mynah, mosquitto, rawTCP, viaCopy} {
			s := res.Samples[name]
			if len(s) == 0 || len(s[0].Extra) == 0 {
				continue
			}
			var parts []string
			for _, e := range s[0].Extra {
				v, unit, _ := res.extra(name, e.Name)
				parts = append(parts, strings.TrimSpace(fmt.Sprintf("%s %s %s", e.Name, formatNumber(v), unit)))
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", res.Key, name, strings.Join(parts, "; "))
		}
	}
	for _, res := range r.Results {
		for _, f := range res.Failures {
			fmt.Fprintf(&b, "\nFAILED: %s\n", f)
		}
	}
	return b.String()
}

func (r *result) cell(target string) string {
	v, ok := r.median(target)
	if !ok {
		return "–"
	}
	return formatNumber(v) + " " + r.Unit
}

// formatNumber prints a number with three significant digits and with separators of
// thousands.
func formatNumber(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1000:
		s := fmt.Sprintf("%.0f", v)
		for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	case a >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// percentile returns the p-th percentile of samples in nanoseconds, in
// milliseconds. It sorts them.
func percentile(v []int64, p float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	i := min(len(v)-1, int(float64(len(v))*p/100))
	return float64(v[i]) / 1e6
}
