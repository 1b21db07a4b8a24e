package pgdial

import (
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// giveUpAfter returns what has the system give a TCP connection up when what was sent
// has not been acknowledged for so long; 0 leaves it to the system.
func giveUpAfter(timeout time.Duration) func(network, address string, conn syscall.RawConn) error {
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
