package pgdial

import (
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout returns a net.Dialer.Control that sets TCP_USER_TIMEOUT: the system
// ends a connection whose data was not acknowledged for so long. 0 leaves the
// system's default.
func setUserTimeout(timeout time.Duration) func(network, address string, conn syscall.RawConn) error {
	return func(network, _ string, conn syscall.RawConn) error {
		if timeout <= 0 || !strings.HasPrefix(network, "tcp") {
			return nil
		}
		var failed error
		if err := conn.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(timeout.Milliseconds()))
		}); err != nil {
			return err
		}
		return failed
	}
}
