package e2e_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/internal/mqttest"
)

// requestExample returns the command with which a document asks a device.
func requestExample(t *testing.T, document string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", document))
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(text), "\n    mosquitto_rr ")
	if !ok {
		t.Fatalf("%s has no example of a request", document)
	}
	line, _, _ := strings.Cut(after, "\n")
	return "mosquitto_rr " + line
}

// The request of the documents, made by the real mosquitto_rr, gets the device's response and
// not itself, which it took for the response; also on the topic for signals, and with others
// of the same person's sessions there, which get both.
func TestRequestAndResponse(t *testing.T) {
	t.Parallel()
	n := shared(t)
	example := requestExample(t, "README.md")
	if other := requestExample(t, "README.zh-CN.md"); other != example {
		t.Errorf("README.zh-CN.md has another example:\n%s\n%s", other, example)
	}
	host, port, err := net.SplitHostPort(n.mqtt)
	if err != nil {
		t.Fatal(err)
	}
	for _, responseTopic := range []string{"user/alice", "user/alice/signal"} {
		alice, device := unique("alice"), unique("dev")
		laptop := dial(t, n, "laptop", token(t, alice))
		laptop.sub(t, "user/"+alice, 1)
		dev := mqttest.Dial(t, n.mqtt, mqttest.Options{Version: 5, ClientID: "d", Token: token(t, device)})
		if codes := dev.Subscribe(1, "user/"+device); string(codes) != "\x01" {
			t.Fatalf("SUBACK %x", codes)
		}
		line := strings.NewReplacer("-h 127.0.0.1 -p 1883", "-h "+host+" -p "+port, "eyJhbGci…", token(t, alice), "user/dev-1", "user/"+device,
			"-e user/alice", "-e "+strings.Replace(responseTopic, "alice", alice, 1)).Replace(example)
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		asked := make(chan string, 1)
		cmd := exec.CommandContext(ctx, "sh", "-c", "exec "+line)
		go func() {
			out, err := cmd.CombinedOutput()
			if err != nil {
				out = append(out, err.Error()...)
			}
			asked <- string(out)
		}()
		request := dev.ReceiveAcked()
		p := request.Properties
		if request.From != alice || request.Body != "temperature?" || p.ResponseTopic == "" {
			t.Fatalf("the device got %s from %s, response topic %q", request.Payload, request.From, p.ResponseTopic)
		}
		dev.Send(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: 1}, PacketID: dev.ID(), TopicName: p.ResponseTopic,
			Payload: []byte(`{"body":"21.5 degrees"}`), Properties: packets.Properties{CorrelationData: p.CorrelationData},
		})
		if ack := dev.Expect(packets.Puback); ack.ReasonCode != 0 {
			t.Fatalf("the response is refused: %#x %q", ack.ReasonCode, ack.Properties.ReasonString)
		}
		out := <-asked
		if !strings.Contains(out, `"from":"`+device+`"`) || !strings.Contains(out, `"body":"21.5 degrees"`) || strings.Contains(out, "temperature?") {
			t.Errorf("mosquitto_rr with responses on %s printed %q, want the response alone", p.ResponseTopic, out)
		}
		laptop.wait(t, "the request on alice's laptop", func(d delivery) bool { return strings.Contains(string(d.Payload), "temperature?") })
		if p.ResponseTopic == "user/"+alice {
			laptop.wait(t, "the response on alice's laptop", func(d delivery) bool { return strings.Contains(string(d.Payload), "21.5 degrees") })
		}
	}
}
