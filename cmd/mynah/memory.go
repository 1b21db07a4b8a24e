package main

import (
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// limitMemory tells Go's collector of the container's memory limit, which it does
// not look at by itself, so that it works harder near the limit instead of being
// killed there. Whoever sets GOMEMLIMIT knows better.
func limitMemory(getenv func(string) string, log *slog.Logger) {
	if getenv("GOMEMLIMIT") != "" {
		return
	}
	limit, ok := cgroupLimit("/sys/fs/cgroup/memory.max")
	if !ok {
		return
	}
	// The rest is for what Go does not count: the log's cache of files, sockets.
	limit = limit / 10 * 9
	debug.SetMemoryLimit(limit)
	log.Debug("memory limit from the container", "bytes", limit)
}

// cgroupLimit reads a limit of cgroup v2 in bytes: a number, or "max" for none.
func cgroupLimit(path string) (int64, bool) {
	raw, err := os.ReadFile(path) //nolint:gosec // a constant, but for tests
	if err != nil {
		return 0, false
	}
	limit, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return limit, err == nil && limit > 0 && limit < math.MaxInt64
}
