package main

import (
	"log/slog"
	"math"
	"syscall"

	"mynah/broker/listener"
)

const (
	// minDescriptors is how many file descriptors a server should be allowed at
	// least; below, it says so. Common limits of 1,024 hold a few hundred clients.
	minDescriptors = 4096
	// operatorsExtra is how many connections the operators' door, and the one of our
	// own parts, may have when clients have taken all that they may.
	operatorsExtra = 16
	// logFiles is how many files the message log keeps open if there are descriptors
	// enough.
	logFiles = 2000
)

// descriptors is the process's file descriptors, and who may have how many.
type descriptors struct {
	limit  int // of the process; Go has raised it as far as it may
	shared *listener.Descriptors
}

// newDescriptors shares out what the system allows.
func newDescriptors(log *slog.Logger) descriptors {
	limit := 1024 // where the system does not say
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err == nil {
		limit = int(min(r.Cur, math.MaxInt32)) // "unlimited" is a very high one
	}
	return descriptors{limit: limit, shared: listener.NewDescriptors(listener.MaxConnections(limit), log)}
}

// connections returns how many connections there may be.
func (d descriptors) connections() int { return listener.MaxConnections(d.limit) }

// forLog returns how many files the message log may keep open: of what connections
// leave, half.
func (d descriptors) forLog() int { return min(logFiles, (d.limit-d.connections())/2) }

// warn says that there are few, or fewer than the operator counts on.
func (d descriptors) warn(maxConnections int, log *slog.Logger) {
	most := d.connections()
	if d.limit >= minDescriptors && maxConnections <= most {
		return
	}
	log.Warn("the system allows this process few file descriptors; raise the limit: ulimit -n, LimitNOFILE= in systemd, --ulimit nofile= in Docker",
		"descriptors", d.limit, "connections_at_most", most)
}
