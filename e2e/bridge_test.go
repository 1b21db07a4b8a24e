package e2e_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"mynah/internal/waitfor"
)

// mosquittoBridge runs Mosquitto with a bridge as a document has it, filled in, and returns
// its address. It is up when it has said so.
func mosquittoBridge(t *testing.T, example, remote, token string, more ...string) (local string) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	local = free.Addr().String()
	_ = free.Close()
	_, port, _ := net.SplitHostPort(local)
	conf := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\npersistence false\n", port)
	if os.Geteuid() == 0 {
		conf += "user root\n" // it would drop to an account that cannot read the folder
	}
	conf += strings.NewReplacer("127.0.0.1:1883", remote, "eyJhbGci…", token).Replace(example) + strings.Join(more, "\n") + "\n"
	path := filepath.Join(t.TempDir(), "mosquitto.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	bin := "/usr/sbin/mosquitto"
	if found, err := exec.LookPath("mosquitto"); err == nil {
		bin = found
	}
	cmd := exec.Command(bin, "-c", path)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("install it with tools/setup: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended already
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	waitfor.MustHold(t, "mosquitto listens", func() bool {
		conn, err := net.DialTimeout("tcp", local, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return local
}

// bridgeExample returns the lines of mosquitto.conf that a document has.
func bridgeExample(t *testing.T, document string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", document))
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(text), "\n    connection ")
	if !ok {
		t.Fatalf("%s has no example of a bridge", document)
	}
	var lines []string
	for line := range strings.SplitSeq("    connection "+after, "\n") {
		inner, indented := strings.CutPrefix(line, "    ")
		if !indented {
			break
		}
		lines = append(lines, inner)
	}
	return strings.Join(lines, "\n") + "\n"
}

// The bridge of the documents: a Mosquitto with default settings passes on messages both ways,
// none of them twice and none back to where it came from, retained as it was retained. Its
// notifications, a will and retained messages below $SYS, do not keep it out.
func TestMosquittoBridge(t *testing.T) {
	t.Parallel()
	example := bridgeExample(t, "README.md")
	for _, other := range []string{"README.zh-CN.md", "PROTOCOL.md"} {
		if got := bridgeExample(t, other); got != example {
			t.Errorf("%s has another example: %q, want %q", other, got, example)
		}
	}
	n := shared(t)
	for name, more := range map[string][]string{
		"default":                  nil,
		"5":                        {"bridge_protocol_version mqttv50"},
		"3.1":                      {"bridge_protocol_version mqttv31"},
		"without the bridge's bit": {"try_private false", "notifications false"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			place := unique("plant/hall")
			acl := jwt.MapClaims{"role": "device", "acl": map[string]any{"pub": []string{"plant/#"}, "sub": []string{"plant/#"}}}
			example := strings.Replace(example, "plant/#", place+"/#", 1)
			local := mosquittoBridge(t, example, n.mqtt, token(t, unique("bridge"), acl), more...)
			there := token(t, unique("device"), acl)

			remoteBox := mosquittoSub(t, n.mqtt, there, "mqttv5", place+"/#", 1)
			localBox := mosquittoSub(t, local, "none", "mqttv5", place+"/#", 1)
			text := func(s string) func(delivery) bool {
				return func(d delivery) bool { return string(d.Payload) == s }
			}
			// The bridge may not be up yet: something gets through when it is.
			go func() {
				for range 600 {
					if t.Context().Err() != nil || strings.Contains(remoteBox.String(), "up") {
						return
					}
					_ = exec.CommandContext(t.Context(), "mosquitto_pub", "-h", "127.0.0.1", "-p", local[strings.LastIndex(local, ":")+1:], "-t", place+"/up", "-m", "up").Run()
					time.Sleep(100 * time.Millisecond)
				}
			}()
			remoteBox.wait(t, "the bridge is up", text("up"))

			for round := range 3 {
				out, in := fmt.Sprint("out ", round), fmt.Sprint("in ", round)
				mosquittoPub(t, local, "none", "mqttv311", place+"/out", 1, out)
				remoteBox.wait(t, out, text(out))
				mosquittoPub(t, n.mqtt, there, "mqttv5", place+"/in", 1, in)
				localBox.wait(t, in, text(in))
			}
			mosquittoPub(t, n.mqtt, there, "mqttv5", place+"/state", 1, "kept there", "-r")
			localBox.wait(t, "what is retained", text("kept there"))
			mosquittoPub(t, local, "none", "mqttv311", place+"/state", 1, "kept here", "-r")
			remoteBox.wait(t, "what is retained", text("kept here"))

			if name == "without the bridge's bit" {
				return // nothing tells the broker that it is a bridge
			}
			for _, box := range []*inbox{remoteBox, localBox} {
				times := map[string]int{}
				for _, d := range box.all() {
					times[string(d.Payload)]++
				}
				for round := range 3 {
					if out, in := times[fmt.Sprint("out ", round)], times[fmt.Sprint("in ", round)]; out != 1 || in != 1 {
						t.Errorf("round %d came %d and %d times: %s", round, out, in, box)
					}
				}
			}
			late := mosquittoSub(t, local, "none", "mqttv5", place+"/state", 1)
			if d := late.wait(t, "what is retained", text("kept here")); !d.Retained {
				t.Error("it is not retained here")
			}
			late = mosquittoSub(t, n.mqtt, there, "mqttv5", place+"/state", 1)
			if d := late.wait(t, "what is retained", text("kept here")); !d.Retained {
				t.Error("it is not retained there")
			}
		})
	}
}
