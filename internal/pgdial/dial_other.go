//go:build !linux

package pgdial

import (
	"syscall"
	"time"
)

// setUserTimeout does nothing on systems without TCP_USER_TIMEOUT. There, keepalive
// finds a dead connection while it is idle, and the time limit of each query
// otherwise.
func setUserTimeout(time.Duration) func(network, address string, conn syscall.RawConn) error {
	return nil
}
