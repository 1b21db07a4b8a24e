// Package leak finds goroutines that outlive the tests that started them. It is goleak
// with more patience: goleak waits for less than half a second, in which on a busy machine
// a goroutine that has nothing more to do may not have been let run to its end.
package leak

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long goroutines have to end. It passes only if one does not.
const patience = 20 * time.Second

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

// Find returns an error that shows the goroutines there are, but for the test's own and
// those that the options name, unless they end in time.
func Find(options ...goleak.Option) error { return find(patience, options...) }

func find(within time.Duration, options ...goleak.Option) error {
	for end := time.Now().Add(within); ; {
		if err := goleak.Find(options...); err == nil || time.Now().After(end) {
			return err
		}
	}
}
