package testbed

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine describes the machine and the programs of a measurement.
type Machine struct {
	Time      string `json:"time"`
	CPU       string `json:"cpu"`
	Cores     int    `json:"cores"`
	Kernel    string `json:"kernel"`
	Go        string `json:"go"`
	Commit    string `json:"commit"`
	Dirty     bool   `json:"dirty"` // the work tree differs from the commit
	Mosquitto string `json:"mosquitto"`
}

// ThisMachine describes the machine and the work tree in the current folder.
func ThisMachine() Machine {
	m := Machine{
		Time: time.Now().UTC().Format("2006-01-02 15:04 MST"), Cores: runtime.NumCPU(), Go: runtime.Version(),
		CPU: "unknown", Kernel: "unknown", Commit: "unknown", Mosquitto: MosquittoVersion(),
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if key, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	ctx := context.Background()
	if out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output(); err == nil {
		m.Commit = strings.TrimSpace(string(out))
	}
	if out, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--untracked-files=no").Output(); err == nil {
		m.Dirty = len(out) > 0
	}
	return m
}

// MeasureFdatasync measures how long it takes to make 4 KiB durable in dir, n times,
// and returns the median and the 99th percentile.
func MeasureFdatasync(dir string, n int) (p50, p99 time.Duration, err error) {
	path := filepath.Join(dir, "fdatasync.probe")
	f, err := os.OpenFile(filepath.Clean(path), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, 0, fmt.Errorf("measure fdatasync: %w", err)
	}
	defer os.Remove(path) //nolint:errcheck // a probe in a temporary folder
	defer f.Close()       //nolint:errcheck // as above
	block := make([]byte, 4096)
	took := make([]time.Duration, n)
	for i := range took {
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, 0, fmt.Errorf("measure fdatasync: %w", err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil { //nolint:gosec // descriptors are small
			return 0, 0, fmt.Errorf("measure fdatasync: %w", err)
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[n/2], took[n*99/100], nil
}
