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
	goals    []goal // the part of goal that is checked
	archiver bool   // Mynah runs with its archiver
	others   []string
	run      func(context.Context, *target) (sample, error)
}

// goal is a bound on Mynah's value, on one of its extra metrics, or on its
// ratio to another server's value.
type goal struct {
	extra        string
	comparedWith string
	bound        float64
	isMax        bool // the bound is an upper one
}

func rows() []*row {
	return []*row{
		{
			key: "flow", unit: "msg/s", goal: "≥ 3.5 × Mosquitto", goals: []goal{{comparedWith: mosquitto, bound: 3.5}},
			title: fixedTitle("10 → 10, QoS 1, 128 bytes, 64 in flight each, archiver off"), others: []string{mosquitto}, run: measurePairs,
		},
		{
			key: "flow-archived", unit: "msg/s", goal: "≥ 1.5 × Mosquitto", goals: []goal{{comparedWith: mosquitto, bound: 1.5}},
			title: fixedTitle("10 → 10, QoS 1, 128 bytes, 64 in flight each, archiver on"), others: []string{mosquitto}, archiver: true, run: measurePairs,
		},
		{
			key: "fan1", unit: "deliveries/s", goal: "≥ 10 × Mosquitto", goals: []goal{{comparedWith: mosquitto, bound: 10}},
			title: func(s *settings) string { return fmt.Sprintf("1 → %d, QoS 1, 64 in flight", s.fan) }, others: []string{mosquitto}, archiver: true, run: measureFanOutQoS1,
		},
		{
			key: "fan0", unit: "deliveries/s", goal: "≥ 15 × Mosquitto and ≥ 0.6 × raw TCP fan-out",
			goals:  []goal{{comparedWith: mosquitto, bound: 15}, {comparedWith: rawTCP, bound: 0.6}},
			title:  func(s *settings) string { return fmt.Sprintf("1 → %d, QoS 0, 5,000,000 deliveries/s offered", s.fan) },
			others: []string{mosquitto, rawTCP}, archiver: true, run: measureFanOutQoS0,
		},
		{
			key: "latency", unit: "ms p99", goal: "≤ 5 ms where fdatasync is under 1 ms", goals: []goal{{bound: 5, isMax: true}},
			title: fixedTitle("1,000 msg/s, 10 → 10, QoS 1: publish to delivery"), others: []string{mosquitto}, archiver: true, run: measureLatency,
		},
		{
			key: "stall", unit: "× p99 of before", goal: "≤ 1.3 × what it was", goals: []goal{{bound: 1.3, isMax: true}},
			title: func(s *settings) string {
				return fmt.Sprintf("one of %d subscribers stops reading at 50 msg/s, QoS 1: p99 of the others", s.fan)
			},
			others: []string{mosquitto}, archiver: true, run: measureStall,
		},
		{
			key: "idle", unit: "KiB/connection", goal: "≤ 24 KiB", goals: []goal{{bound: 24, isMax: true}},
			title: func(s *settings) string {
				return fmt.Sprintf("%d idle TCP connections, one subscription each: resident memory", s.idle)
			},
			others: []string{mosquitto}, archiver: true, run: measureIdle,
		},
		{
			key: "resume", unit: "ms", goal: "≤ 200 ms", goals: []goal{{bound: 200, isMax: true}},
			title: fixedTitle("member of 200 groups resumes after 100,000 messages elsewhere and 1,000 in its groups"), others: []string{mosquitto}, archiver: true, run: measureResume,
		},
		{
			key: "crowd", unit: "ms", goal: "≤ 250 ms", goals: []goal{{bound: 250, isMax: true}},
			title: func(s *settings) string {
				return fmt.Sprintf("one message to a group of %d connected members: the last has it", s.crowd)
			},
			others: []string{mosquitto}, archiver: true, run: measureLargeGroup,
		},
		{
			key: "archive", unit: "% within 500 ms", goal: "≥ 99 %", goals: []goal{{bound: 99}},
			title: fixedTitle("5,000 msg/s, 10 → 10, QoS 1: in PostgreSQL after the acknowledgement"), archiver: true, run: measureArchiveDelay,
		},
		{
			key: "catchup", unit: "rows/s", goal: "≥ 0.4 × COPY", goals: []goal{{comparedWith: viaCopy, bound: 0.4}},
			title: func(s *settings) string { return fmt.Sprintf("archiver's catch-up of %d messages", s.catchup) }, run: measureCatchUp,
		},
		{
			key: "catchup-live", unit: "× rate of before", goal: "≥ 0.67", goals: []goal{{bound: 0.67}},
			title: fixedTitle("10 → 10, QoS 1, one in flight each, while the archiver catches up"), run: measureLiveDuringCatchUp,
		},
	}
}

func fixedTitle(s string) func(*settings) string { return func(*settings) string { return s } }

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
		if name == rawTCP || slices.Contains(s.targets, name) {
			t = append(t, name)
		}
	}
	return t
}
