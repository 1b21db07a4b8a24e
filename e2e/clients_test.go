package e2e_test

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/golang-jwt/jwt/v5"
)

// unique makes an id that no other test of this run uses.
func unique(prefix string) string { return prefix + "-" + strconv.FormatInt(ids.Add(1), 36) }

var ids atomic.Int64

// token signs a token for sub with further claims.
func token(tb testing.TB, sub string, more ...jwt.MapClaims) string {
	tb.Helper()
	claims := jwt.MapClaims{"sub": sub, "exp": time.Now().Add(time.Hour).Unix()}
	for _, m := range more {
		maps.Copy(claims, m)
	}
	signed, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(secret))
	if err != nil {
		tb.Fatal(err)
	}
	return signed
}

// groups is the claim that makes a member of the groups.
func groups(ids ...string) jwt.MapClaims { return jwt.MapClaims{"groups": ids} }

// ---- mosquitto_pub, mosquitto_sub

func mosquittoArgs(tb testing.TB, addr, token, version string) []string {
	tb.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		tb.Fatal(err)
	}
	return []string{"-h", host, "-p", port, "-u", "any", "-P", token, "-V", version}
}

// mosquittoPub publishes one payload and returns what the client printed.
func mosquittoPub(tb testing.TB, addr, token, version, topic string, qos int, payload string, more ...string) string {
	tb.Helper()
	args := append(mosquittoArgs(tb, addr, token, version), "-d", "-t", topic, "-q", strconv.Itoa(qos), "-s")
	cmd := exec.CommandContext(tb.Context(), "mosquitto_pub", append(args, more...)...)
	cmd.Stdin = strings.NewReader(payload)
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("mosquitto_pub -V %s to %s: %v\n%s", version, topic, err, out)
	}
	return string(out)
}

// mosquittoSub runs mosquitto_sub until the test ends and returns when its
// subscription has been answered.
func mosquittoSub(tb testing.TB, addr, token, version, topic string, qos int, more ...string) *inbox {
	tb.Helper()
	args := append([]string{"-oL", "mosquitto_sub"}, mosquittoArgs(tb, addr, token, version)...)
	args = append(args, "-d", "-t", topic, "-q", strconv.Itoa(qos), "-F", "MSG\t%t\t%q\t%r\t%p")
	cmd := exec.Command("stdbuf", append(args, more...)...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	box, subscribed, ended := newInbox(), make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(stdout)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			line := lines.Text()
			if f := strings.SplitN(line, "\t", 5); len(f) == 5 && f[0] == "MSG" {
				box.add(delivery{Topic: f[1], QoS: f[2][0] - '0', Retained: f[3] == "1", Payload: []byte(f[4])})
			} else if strings.HasPrefix(line, "Subscribed (mid:") {
				select {
				case subscribed <- line:
				default:
				}
			}
		}
	}()
	tb.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended already
		<-ended
		_ = cmd.Wait()
	})
	select {
	case <-subscribed:
	case <-ended:
		tb.Fatalf("mosquitto_sub -V %s -t %s ended before it had subscribed", version, topic)
	case <-time.After(deadline):
		tb.Fatalf("mosquitto_sub -V %s -t %s: no answer to its subscription", version, topic)
	}
	return box
}

// ---- MQTT.js

// jsEvent is a line of e2e/node/client.mjs.
type jsEvent struct {
	ID      int    `json:"id"`
	Event   string `json:"event"`
	Error   string `json:"error"`
	Topic   string `json:"topic"`
	Payload []byte `json:"payload"`
	QoS     byte   `json:"qos"`
	Retain  bool   `json:"retain"`
	Dup     bool   `json:"dup"`
	Packet  struct {
		ReasonCode     int   `json:"reasonCode"`
		Granted        []int `json:"granted"`
		SessionPresent bool  `json:"sessionPresent"`
		Properties     struct {
			ReasonString   string            `json:"reasonString"`
			UserProperties map[string]string `json:"userProperties"`
			AssignedID     string            `json:"assignedClientIdentifier"`
			ReceiveMaximum int               `json:"receiveMaximum"`
			SessionExpiry  uint32            `json:"sessionExpiryInterval"`
		} `json:"properties"`
	} `json:"packet"`
}

// jsClient is an MQTT.js client in a node process of its own.
type jsClient struct {
	*inbox
	stdin io.WriteCloser
	id    int

	mu      sync.Mutex
	events  []jsEvent
	changed chan struct{}
}

// newJS starts node and waits until it has; the client is not connected yet.
func newJS(tb testing.TB) *jsClient {
	tb.Helper()
	cmd := exec.Command("node", "client.mjs")
	cmd.Dir = "node"
	stdin, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	stderr := newOutput()
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	c := &jsClient{inbox: newInbox(), stdin: stdin, changed: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(stdout)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			var e jsEvent
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				e = jsEvent{Event: "error", Error: fmt.Sprintf("%v: %s", err, lines.Text())}
			}
			if e.Event == "message" {
				c.add(delivery{Topic: e.Topic, QoS: e.QoS, Retained: e.Retain, Dup: e.Dup, Payload: e.Payload})
				continue
			}
			c.mu.Lock()
			c.events = append(c.events, e)
			close(c.changed)
			c.changed = make(chan struct{})
			c.mu.Unlock()
		}
	}()
	tb.Cleanup(func() {
		_ = stdin.Close() // which ends it
		select {
		case <-ended:
		case <-time.After(deadline):
			_ = cmd.Process.Kill()
			<-ended
		}
		if err := cmd.Wait(); err != nil || tb.Failed() {
			tb.Logf("client.mjs: %v\n%s", err, stderr)
		}
	})
	c.event(tb, "start of node", func(e jsEvent) bool { return e.Event == "ready" })
	return c
}

// event waits for the first event that matches.
func (c *jsClient) event(tb testing.TB, what string, match func(jsEvent) bool) jsEvent {
	tb.Helper()
	timeout := time.After(deadline)
	for seen := 0; ; {
		c.mu.Lock()
		fresh, changed := c.events[seen:], c.changed
		c.mu.Unlock()
		for _, e := range fresh {
			if match(e) {
				return e
			}
		}
		seen += len(fresh)
		select {
		case <-changed:
		case <-timeout:
			c.mu.Lock()
			defer c.mu.Unlock()
			tb.Fatalf("MQTT.js: no %s within %v; events: %+v", what, deadline, c.events)
		}
	}
}

// send gives a command and waits for its answer.
func (c *jsClient) send(tb testing.TB, command map[string]any) jsEvent {
	tb.Helper()
	c.id++
	id := c.id
	command["id"] = id
	line, err := json.Marshal(command)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := c.stdin.Write(append(line, '\n')); err != nil {
		tb.Fatal(err)
	}
	return c.event(tb, fmt.Sprintf("answer to %s", line), func(e jsEvent) bool { return e.ID == id })
}

// connectJS connects over WebSocket with MQTT 5 unless options say otherwise, and
// fails the test if it is refused.
func connectJS(tb testing.TB, n *node, token string, options map[string]any) *jsClient {
	tb.Helper()
	c := newJS(tb)
	if e := c.connect(tb, "ws://"+n.http+"/mqtt", token, options); e.Event != "connect" {
		tb.Fatalf("MQTT.js does not connect: %s", e.Error)
	}
	return c
}

func (c *jsClient) connect(tb testing.TB, url, token string, options map[string]any) jsEvent {
	tb.Helper()
	all := map[string]any{"protocolVersion": 5, "username": "any", "password": token}
	maps.Copy(all, options)
	return c.send(tb, map[string]any{"do": "connect", "url": url, "options": all})
}

// subscribe returns the reason code of the SUBACK.
func (c *jsClient) subscribe(tb testing.TB, topic string, qos int) int {
	tb.Helper()
	before := c.eventCount("suback")
	c.send(tb, map[string]any{"do": "subscribe", "topic": topic, "options": map[string]any{"qos": qos}})
	e := c.nth(tb, "suback", before)
	if len(e.Packet.Granted) != 1 {
		tb.Fatalf("SUBACK for %s: %+v", topic, e)
	}
	return e.Packet.Granted[0]
}

// publish returns the answer; its packet is the PUBACK or, for QoS 2, the PUBREC
// if that refused it.
func (c *jsClient) publish(tb testing.TB, topic string, qos int, payload string) jsEvent {
	tb.Helper()
	acks := c.eventCount("puback", "pubrec")
	e := c.send(tb, map[string]any{
		"do": "publish", "topic": topic,
		"payload": base64.StdEncoding.EncodeToString([]byte(payload)), "options": map[string]any{"qos": qos},
	})
	if qos > 0 {
		ack := c.nth(tb, "puback or pubrec", acks, "puback", "pubrec")
		e.Packet = ack.Packet
	}
	return e
}

func (c *jsClient) eventCount(names ...string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		if slices.Contains(names, e.Event) {
			n++
		}
	}
	return n
}

// nth waits for the event of one of the names that has n such before it.
func (c *jsClient) nth(tb testing.TB, what string, n int, names ...string) jsEvent {
	tb.Helper()
	if len(names) == 0 {
		names = []string{what}
	}
	seen := 0
	return c.event(tb, what, func(e jsEvent) bool {
		if !slices.Contains(names, e.Event) {
			return false
		}
		seen++
		return seen > n
	})
}

// ---- paho.mqtt.golang

// pahoClient is a 3.1.1 client that collects what it gets.
type pahoClient struct {
	paho.Client
	*inbox
	lost chan error
}

func pahoOptions(n *node, clientID, token string) *paho.ClientOptions {
	return paho.NewClientOptions().AddBroker("tcp://" + n.mqtt).SetClientID(clientID).
		SetUsername("any").SetPassword(token).SetAutoReconnect(false).SetConnectTimeout(deadline).
		SetProtocolVersion(4).SetOrderMatters(true)
}

// connectPaho connects and disconnects with the test.
func connectPaho(tb testing.TB, options *paho.ClientOptions) *pahoClient {
	tb.Helper()
	c := &pahoClient{inbox: newInbox(), lost: make(chan error, 1)}
	options.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) {
		c.add(delivery{Topic: m.Topic(), QoS: m.Qos(), Retained: m.Retained(), Dup: m.Duplicate(), Payload: m.Payload()})
	})
	options.SetConnectionLostHandler(func(_ paho.Client, err error) {
		select {
		case c.lost <- err:
		default:
		}
	})
	c.Client = paho.NewClient(options)
	done(tb, c.Connect(), "connect")
	tb.Cleanup(func() { c.Disconnect(100) })
	return c
}

// done waits for an operation of paho.
func done(tb testing.TB, t paho.Token, what string) {
	tb.Helper()
	if !t.WaitTimeout(deadline) {
		tb.Fatalf("paho: %s: no answer within %v", what, deadline)
	}
	if err := t.Error(); err != nil {
		tb.Fatalf("paho: %s: %v", what, err)
	}
}

// dial connects a client id of a subject, without more.
func dial(tb testing.TB, n *node, clientID, token string) *pahoClient {
	tb.Helper()
	return connectPaho(tb, pahoOptions(n, clientID, token))
}

func (c *pahoClient) sub(tb testing.TB, topic string, qos byte) {
	tb.Helper()
	t, ok := c.Subscribe(topic, qos, nil).(*paho.SubscribeToken)
	if !ok {
		tb.Fatal("paho: not a subscribe token")
	}
	done(tb, t, "subscribe to "+topic)
	if granted := t.Result()[topic]; granted > 2 {
		tb.Fatalf("subscription to %s refused: %#x", topic, granted)
	}
}

func (c *pahoClient) pub(tb testing.TB, topic string, qos byte, payload string) {
	tb.Helper()
	done(tb, c.Publish(topic, qos, false, payload), "publish to "+topic)
}
