package stopwatch_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"mynah/internal/stopwatch"
)

// childEnv makes this test binary a process that is stopped for a while.
const childEnv = "MYNAH_STOPWATCH_TEST_CHILD"

// A stopwatch runs while the process runs, and does not count the time in which the
// process is stopped. Guards against failures of a test that the machine causes.
func TestStandsStillWithTheProcess(t *testing.T) {
	t.Parallel()
	if os.Getenv(childEnv) != "" {
		child(t)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestStandsStillWithTheProcess$")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("the child is not stopped: %v, %v", status, err)
	}
	const stopped = time.Second
	time.Sleep(stopped) // the time in which it does not run
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("child: %v\n%s", err, text)
	}
	var watch, clock time.Duration
	if _, err := fmt.Sscan(string(text), (*int64)(&watch), (*int64)(&clock)); err != nil {
		t.Fatalf("child: %v\n%s", err, text)
	}
	if clock-watch < stopped*9/10 {
		t.Errorf("%v by the stopwatch and %v by the clock, of which the process was stopped for %v", watch, clock, stopped)
	}
}

// child stops itself (SIGSTOP) while its stopwatch runs, and prints the times of the
// stopwatch and of the clock in nanoseconds. It waits by the stopwatch, so it ends only if
// the stopwatch runs again.
func child(t *testing.T) {
	t.Helper()
	w := stopwatch.New(t)
	began, start := w.Elapsed(), time.Now()
	run := func(until time.Duration) {
		for w.Since(began) < until {
			time.Sleep(time.Millisecond)
		}
	}
	run(100 * time.Millisecond)
	if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	run(300 * time.Millisecond) // more than a stop may count for
	fmt.Println(int64(w.Since(began)), int64(time.Since(start)))
}
