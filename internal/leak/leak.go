// Package leak finds goroutines that outlive the tests that started them. It is goleak
// with a longer time-out. goleak waits for less than half a second, which on a busy
// machine can be too short for a goroutine to return. Call Main from TestMain.
package leak

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// exitTimeout is how long goroutines have to end. Only a leak takes that long.
const exitTimeout = 20 * time.Second

// Main runs the tests of a package, for TestMain, and fails if they leave goroutines.
func Main(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := Find(); err != nil {
			fmt.Fprintf(os.Stderr, "all tests have passed, but: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

// Find waits until all goroutines have ended, except the test's own and those that the
// options ignore. After a time-out it returns an error with their stacks.
func Find(options ...goleak.Option) error { return find(exitTimeout, options...) }

func find(within time.Duration, options ...goleak.Option) error {
	for end := time.Now().Add(within); ; {
		if err := goleak.Find(options...); err == nil || time.Now().After(end) {
			return err
		}
	}
}
