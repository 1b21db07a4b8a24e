//go:build !linux

package pgdial

import (
	"syscall"
	"time"
)

// giveUpAfter does nothing where there is no TCP_USER_TIMEOUT; keepalive does it while
// nothing is on its way, and the limits of each question otherwise.
func giveUpAfter(time.Duration) func(network, address string, conn syscall.RawConn) error { return nil }
