package main

import (
	"context"
	"fmt"
	"slices"
)

// row is one load and what Mynah has promised to do under it.
type row struct {
	key      string
	title    func(*settings) string
	unit     string
	goal     string // for people
	goals    []goal // what of it can be judged
	archiver bool   // Mynah runs with its archiver
	others   []string
	run      func(context.Context, *target) (sample, error)
}

// goal is a bound on Mynah's value, or on a further figure, or on its ratio to
// another server's.
type goal struct {
	extra string
	than  string
	bound float64
	most  bool // the bound is an upper one
}

func rows() []*row {
	return []*row{
		{
			key: "flow", unit: "msg/s", goal: "≥ 3.5 × Mosquitto", goals: []goal{{than: mosquitto, bound: 3.5}},
			title: text("10 → 10, QoS 1, 128 bytes, 64 in flight each, archiver off"), others: []string{mosquitto}, run: flow,
		},
		{
			key: "flow-archived", unit: "msg/s", goal: "≥ 1.5 × Mosquitto", goals: []goal{{than: mosquitto, bound: 1.5}},
			title: text("10 → 10, QoS 1, 128 bytes, 64 in flight each, archiver on"), others: []string{mosquitto}, archiver: true, run: flow,
		},
		{
			key: "fan1", unit: "deliveries/s", goal: "≥ 10 × Mosquitto", goals: []goal{{than: mosquitto, bound: 10}},
			title: func(s *settings) string { return fmt.Sprintf("1 → %d, QoS 1, 64 in flight", s.fan) }, others: []string{mosquitto}, archiver: true, run: fanAcknowledged,
		},
		{
			key: "fan0", unit: "deliveries/s", goal: "≥ 15 × Mosquitto and ≥ 0.6 × raw TCP fan-out",
			goals:  []goal{{than: mosquitto, bound: 15}, {than: raw, bound: 0.6}},
			title:  func(s *settings) string { return fmt.Sprintf("1 → %d, QoS 0, 5,000,000 deliveries/s offered", s.fan) },
			others: []string{mosquitto, raw}, archiver: true, run: fanOffered,
		},
		{
			key: "latency", unit: "ms p99", goal: "≤ 5 ms where fdatasync is under 1 ms", goals: []goal{{bound: 5, most: true}},
			title: text("1,000 msg/s, 10 → 10, QoS 1: publish to delivery"), others: []string{mosquitto}, archiver: true, run: latency,
		},
		{
			key: "stall", unit: "× p99 of before", goal: "≤ 1.3 × what it was", goals: []goal{{bound: 1.3, most: true}},
			title: func(s *settings) string {
				return fmt.Sprintf("one of %d subscribers stops reading at 50 msg/s, QoS 1: p99 of the others", s.fan)
			},
			others: []string{mosquitto}, archiver: true, run: stall,
		},
		{
			key: "idle", unit: "KiB/connection", goal: "≤ 24 KiB", goals: []goal{{bound: 24, most: true}},
			title: func(s *settings) string {
				return fmt.Sprintf("%d idle TCP connections, one subscription each: resident memory", s.idle)
			},
			others: []string{mosquitto}, archiver: true, run: idle,
		},
		{
			key: "resume", unit: "ms", goal: "≤ 200 ms", goals: []goal{{bound: 200, most: true}},
			title: text("member of 200 groups resumes after 100,000 messages elsewhere and 1,000 in its groups"), others: []string{mosquitto}, archiver: true, run: resume,
		},
		{
			key: "crowd", unit: "ms", goal: "≤ 250 ms", goals: []goal{{bound: 250, most: true}},
			title: func(s *settings) string {
				return fmt.Sprintf("one message to a group of %d connected members: the last has it", s.crowd)
			},
			others: []string{mosquitto}, archiver: true, run: crowd,
		},
		{
			key: "archive", unit: "% within 500 ms", goal: "≥ 99 %", goals: []goal{{bound: 99}},
			title: text("5,000 msg/s, 10 → 10, QoS 1: in PostgreSQL after the acknowledgement"), archiver: true, run: archiveSteady,
		},
		{
			key: "catchup", unit: "rows/s", goal: "≥ 0.4 × COPY", goals: []goal{{than: copyIn, bound: 0.4}},
			title: func(s *settings) string { return fmt.Sprintf("archiver's catch-up of %d messages", s.catchup) }, run: catchUp,
		},
		{
			key: "catchup-live", unit: "× rate of before", goal: "≥ 0.67", goals: []goal{{bound: 0.67}},
			title: text("10 → 10, QoS 1, one in flight each, while the archiver catches up"), run: catchUpLive,
		},
	}
}

func text(s string) func(*settings) string { return func(*settings) string { return s } }

func rowKeys() []string {
	var keys []string
	for _, r := range rows() {
		keys = append(keys, r.key)
	}
	return keys
}

func findRow(key string) *row {
	all := rows()
	return all[slices.IndexFunc(all, func(r *row) bool { return r.key == key })]
}

func (r *row) targetsOf(s *settings) []string {
	var t []string
	for _, name := range append([]string{mynah}, r.others...) {
		if name == raw || slices.Contains(s.targets, name) {
			t = append(t, name)
		}
	}
	return t
}
