package e2e_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"mynah/internal/waitfor"
)

// Whoever opens connections and says nothing does not take the descriptors that the
// message log needs: it ended the process, with nobody's token. Whoever is there is
// served, the operators see what is going on, and when the others have gone there is
// room.
func TestConnectionsLeaveDescriptors(t *testing.T) {
	t.Parallel()
	const limit = 300 // of which connections may take half
	n := started(t, launchCommand(exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, limit),
		mynah, "broker", "--data-dir", t.TempDir(), "--jwt-secret", secret,
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")))
	if warning := n.log.String(); !strings.Contains(warning, "ulimit -n") {
		t.Errorf("no warning that there are few descriptors:\n%s", warning)
	}
	alice := unique("alice")
	honest := dial(t, n, "honest", token(t, alice))
	honest.sub(t, "user/"+alice, 1)

	crowd := make([]net.Conn, 0, 2*limit)
	leave := func() {
		for _, conn := range crowd {
			_ = conn.Close()
		}
	}
	t.Cleanup(leave)
	for i := range 2 * limit {
		addr := n.mqtt
		if i%2 == 1 {
			addr = n.http
		}
		// What is refused is reset, at times before the dial has ended.
		if conn, err := (&net.Dialer{Timeout: deadline}).DialContext(t.Context(), "tcp", addr); err == nil {
			crowd = append(crowd, conn)
		}
	}
	refused := regexp.MustCompile(`(?m)^mynah_descriptors_refused_total\{door="(mqtt|http)"\} [1-9]`)
	waitfor.MustHold(t, "refusals at both doors", func() bool { return len(refused.FindAllString(metrics(t, n), -1)) == 2 })
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if free := limit - len(files); free < limit/4 {
		t.Errorf("%d descriptors of %d are left for the log", free, limit)
	}
	honest.pub(t, "user/"+alice, 1, "in the crowd")
	honest.waitText(t, "in the crowd")

	leave()
	var late net.Conn
	waitfor.MustHold(t, "room for another client", func() bool {
		conn, err := (&net.Dialer{Timeout: deadline}).DialContext(t.Context(), "tcp", n.mqtt)
		if err != nil {
			return false
		}
		_ = conn.SetDeadline(time.Now().Add(deadline))
		_, err = conn.Write(connectPacket(4, "late", token(t, unique("bob"))))
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 4))
		}
		if err != nil {
			_ = conn.Close()
			return false
		}
		late = conn
		return true
	})
	_ = late.Close()
}

// metrics returns what the operators' door says, on a connection of its own.
func metrics(tb testing.TB, n *node) string {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, "http://"+n.metrics+"/metrics", nil)
	if err != nil {
		tb.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return string(text)
}
