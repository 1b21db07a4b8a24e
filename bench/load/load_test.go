package load_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"mynah/bench/load"
	"mynah/bench/testbed"
	"mynah/internal/mqttwire"
	"mynah/internal/stopwatch"
)

// patience bounds every wait.
const patience = 30 * time.Second

func mosquitto(t *testing.T) int {
	t.Helper()
	port, err := testbed.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	p, err := testbed.Mosquitto(&testbed.MosquittoSpec{Dir: t.TempDir(), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(patience); err != nil {
			t.Error(err)
		}
	})
	return port
}

// With a real broker every message arrives once and in order, for each way in
// which the generator publishes.
func TestEverythingArrives(t *testing.T) {
	t.Parallel()
	port := mosquitto(t)
	for qos := range byte(2) {
		l, err := load.NewLoop()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		topic := fmt.Sprintf("group/q%d", qos)
		var subs []*load.Subscriber
		for i := range 5 {
			s, err := l.DialSubscriber(&load.DialSpec{
				Port: port, Connect: mqttwire.Connect{ClientID: fmt.Sprintf("s%d-%d", qos, i), Clean: true},
				Filters: []mqttwire.Filter{{Topic: topic, QoS: qos}},
			}, 128, false)
			if err != nil {
				t.Fatal(err)
			}
			s.Latencies = make([]int64, 0, 10000)
			subs = append(subs, s)
		}
		p, err := l.DialPublisher(&load.DialSpec{Port: port, Connect: mqttwire.Connect{ClientID: fmt.Sprintf("p%d", qos), Clean: true}},
			7, &load.PublishSpec{Topics: []string{topic}, QoS: qos, Size: 128, Window: 64})
		if err != nil {
			t.Fatal(err)
		}
		must(t, l.RunUntil(l.Ready, patience, "connect"))
		p.PublishMore(1000)
		must(t, l.RunUntil(p.AllAcknowledged, patience, "burst"))
		watch := stopwatch.New(t)
		began := time.Now()
		p.PublishAtRate(2000, 0)
		must(t, l.RunUntil(func() bool { return p.Sent >= 1600 }, patience, "pace"))
		p.StopPublishing()
		if due := 1001 + 2000*time.Since(began).Seconds(); float64(p.Sent) > due {
			t.Errorf("sent %d messages, %.0f are due", p.Sent, due)
		}
		if took := watch.Elapsed(); took > 450*time.Millisecond {
			t.Errorf("600 messages took %v, want about 300 ms", took)
		}
		must(t, l.RunUntil(p.AllAcknowledged, patience, "acknowledgements"))
		all := func() bool {
			for _, s := range subs {
				if s.Seen < p.Sent {
					return false
				}
			}
			return true
		}
		must(t, l.RunUntil(all, patience, "deliveries"))
		for _, s := range subs {
			must(t, s.Check(false))
			if s.NextNumber(7) != p.Sent || uint64(len(s.Latencies)) != p.Sent {
				t.Errorf("next %d and %d latencies, want %d", s.NextNumber(7), len(s.Latencies), p.Sent)
			}
		}
	}
}

// Guards against a check that cannot fail. A server of the test makes each kind
// of wrong delivery, and each is counted as that kind.
func TestWrongDeliveriesAreCounted(t *testing.T) {
	t.Parallel()
	text := func(n int) string { return fmt.Sprintf("b:007:%09d:%019d:xxxx", n, 1) }
	mynah := func(seq, prev, n int) string {
		return fmt.Sprintf(`{"seq":%d,"prev":%d,"from":"p","to":"group/a","ts":1,"type":"text","body":"%s"}`, seq, prev, text(n))
	}
	for name, c := range map[string]struct {
		payloads                                    []string
		prev                                        bool
		lost, repeated, disordered, broken, foreign uint64
	}{
		"right":          {payloads: []string{text(0), text(1), text(2)}},
		"right, Mynah":   {payloads: []string{mynah(5, 0, 0), mynah(6, 5, 1), mynah(9, 6, 2)}, prev: true},
		"extra field":    {payloads: []string{mynah(5, 0, 0)[:len(mynah(5, 0, 0))-1] + `,"mid":"m"}`}},
		"lost":           {payloads: []string{text(0), text(3)}, lost: 2},
		"repeated":       {payloads: []string{text(0), text(0)}, repeated: 1},
		"out of order":   {payloads: []string{text(0), text(2), text(1)}, disordered: 1},
		"prev broken":    {payloads: []string{mynah(5, 0, 0), mynah(7, 6, 1)}, prev: true, broken: 1},
		"seq going back": {payloads: []string{mynah(5, 0, 0), mynah(4, 5, 1)}, prev: true, broken: 1},
		"foreign":        {payloads: []string{"hello"}, foreign: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lis, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer lis.Close() //nolint:errcheck // a test's listener
			go serve(lis, c.payloads)
			l, err := load.NewLoop()
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			s, err := l.DialSubscriber(&load.DialSpec{
				Port: lis.Addr().(*net.TCPAddr).Port, Connect: mqttwire.Connect{ClientID: "s"}, Filters: []mqttwire.Filter{{Topic: "group/a", QoS: 1}},
			}, len(text(0)), c.prev)
			if err != nil {
				t.Fatal(err)
			}
			n := uint64(len(c.payloads))
			must(t, l.RunUntil(func() bool { return s.Seen+s.Repeated+s.Unknown >= n }, patience, "deliveries"))
			if s.Lost != c.lost || s.Repeated != c.repeated || s.OutOfOrder != c.disordered || s.BrokenPrev != c.broken || s.Unknown != c.foreign {
				t.Errorf("%+v", s)
			}
			if err := s.Check(false); (err != nil) != (c.lost+c.repeated+c.disordered+c.broken+c.foreign > 0) {
				t.Errorf("Check: %v", err)
			}
		})
	}
}

// serve answers one client and sends it the payloads, in pieces of three bytes so
// that packets are cut at every place.
func serve(lis net.Listener, payloads []string) {
	c, err := lis.Accept()
	if err != nil {
		return
	}
	defer c.Close() //nolint:errcheck // a test's connection
	buf := make([]byte, 1024)
	if _, err := c.Read(buf); err != nil {
		return
	}
	out := []byte{0x20, 2, 0, 0, 0x90, 3, 0, 1, 1}
	for i, p := range payloads {
		publish := mqttwire.Packet{Type: mqttwire.PUBLISH, Topic: "group/a", QoS: 1, ID: uint16(i + 1), Payload: []byte(p)} //nolint:gosec // few
		out = publish.Append(out, mqttwire.V311)
	}
	for len(out) > 0 {
		n := min(3, len(out))
		if _, err := c.Write(out[:n]); err != nil {
			return
		}
		out = out[n:]
	}
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
