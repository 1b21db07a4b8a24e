package testbed

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// MosquittoSpec says how to run Mosquitto.
type MosquittoSpec struct {
	Dir       string // for its configuration and log
	Port      int
	WebSocket int    // port for WebSocket, 0 for none
	Persist   string // folder for Debian's persistence, "" for none
}

// Mosquitto starts Mosquitto and waits until it accepts connections.
//
// Anonymous clients are allowed. Without persistence, limits that would slow it
// down or make it drop messages are raised: queued messages are unlimited, and
// 64 messages may be in flight to a client instead of 20, as many as the
// generator has in flight. With persistence it runs as Debian's package
// configures it, except that queued messages are unlimited, as a careful user
// would set it.
func Mosquitto(s *MosquittoSpec) (*Proc, error) {
	bin, err := mosquittoBin()
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("listener %d 127.0.0.1\n", s.Port)
	if s.WebSocket > 0 {
		conf += fmt.Sprintf("listener %d 127.0.0.1\nprotocol websockets\n", s.WebSocket)
	}
	conf += "allow_anonymous true\nmax_queued_messages 0\nset_tcp_nodelay true\n"
	if s.Persist == "" {
		conf += "persistence false\nmax_inflight_messages 64\n"
	} else {
		conf += "persistence true\npersistence_location " + s.Persist + "/\n"
	}
	if os.Geteuid() == 0 {
		conf += "user root\n" // otherwise it switches to an account that cannot read the folder
	}
	path := filepath.Join(s.Dir, "mosquitto.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		return nil, fmt.Errorf("configure mosquitto: %w", err)
	}
	p, err := Start(&ProcSpec{Name: "mosquitto", Dir: s.Dir, Args: []string{bin, "-c", path}})
	if err != nil {
		return nil, err
	}
	return p, p.WaitPort(fmt.Sprintf("127.0.0.1:%d", s.Port), 20*time.Second)
}

func mosquittoBin() (string, error) {
	for _, name := range []string{"mosquitto", "/usr/sbin/mosquitto"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("no mosquitto here: install it with `apt-get install mosquitto`")
}

// MosquittoVersion returns the version of the installed Mosquitto.
func MosquittoVersion() string {
	bin, err := mosquittoBin()
	if err != nil {
		return "none"
	}
	// It has no option for its version; -h prints it and exits with 3.
	out, _ := exec.CommandContext(context.Background(), bin, "-h").CombinedOutput() //nolint:errcheck,gosec // see above
	f := strings.Fields(string(out))
	if len(f) < 3 {
		return "unknown"
	}
	return f[2]
}
