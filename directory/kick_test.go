package directory_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/internal/mqttest"
	"mynah/internal/waitfor"
)

// member is a raw socket of somebody in the group: it counts what comes.
type member struct {
	conn net.Conn
	last atomic.Int64 // when the last bytes came by the test's stopwatch, nanoseconds
}

// errLater is what a member is told who cannot be checked right now.
var errLater = errors.New("the server is unavailable")

// dialMember connects and subscribes to group/+ at QoS 0 without a client library:
// thousands of those would be the test's own load. It comes again if it is told to.
func dialMember(addr, id, token string) (m *member, err error) {
	for end := time.Now().Add(mqttest.Timeout); ; {
		if m, err = tryMember(addr, id, token); !errors.Is(err, errLater) || time.Now().After(end) {
			return m, err
		}
	}
}

func tryMember(addr, id, token string) (_ *member, err error) {
	conn, err := (&net.Dialer{Timeout: mqttest.Timeout}).Dial("tcp", addr) //nolint:noctx // the test's end closes it
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	connect := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 4,
		Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: "c", UsernameFlag: true, Username: []byte(id), PasswordFlag: true, Password: []byte(token)},
	}
	subscribe := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: 4, PacketID: 1,
		Filters: packets.Subscriptions{{Filter: "group/+"}},
	}
	var out bytes.Buffer
	if err := connect.ConnectEncode(&out); err != nil {
		return nil, err
	}
	if err := subscribe.SubscribeEncode(&out); err != nil {
		return nil, err
	}
	if _, err := conn.Write(out.Bytes()); err != nil {
		return nil, err
	}
	answer := make([]byte, 4+5) // CONNACK and SUBACK
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	n, err := io.ReadFull(conn, answer)
	if n >= 4 && answer[3] == 3 { // MQTT 3.1.1, 3.2.2.3: server unavailable
		return nil, errLater
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", id, err)
	}
	if answer[3] != 0 || answer[8] != 0 {
		return nil, fmt.Errorf("%s: refused: % x", id, answer)
	}
	_ = conn.SetReadDeadline(time.Time{})
	return &member{conn: conn}, nil
}

// Of 5,000 connected members one is removed while a group chats: less than a second
// after the commit the last message reaches them.
func TestKickToLastDelivery(t *testing.T) {
	const connected = 5000
	w := fresh(t)
	w.exec(`INSERT INTO groups (id) VALUES ('g')`)
	w.exec(`INSERT INTO members (grp, account) SELECT 'g', 'm' || i FROM generate_series(1, $1) i`, connected)

	members := make([]*member, connected)
	var connecting, reading sync.WaitGroup
	next := make(chan int)
	failed := make(chan error, connected)
	for range 32 {
		connecting.Go(func() {
			for i := range next {
				id := fmt.Sprintf("m%d", i+1)
				token, err := authhook.Mint(secret, authhook.TokenClaims{Subject: id, TTL: time.Hour})
				if err == nil {
					members[i], err = dialMember(w.addr, id, token)
				}
				if err != nil {
					failed <- err
				}
			}
		})
	}
	began := time.Now()
	for i := range connected {
		next <- i
	}
	close(next)
	connecting.Wait()
	defer func() {
		for _, m := range members {
			if m != nil {
				_ = m.conn.Close()
			}
		}
		reading.Wait()
	}()
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	t.Logf("%d connected and subscribed in %v", connected, time.Since(began).Round(time.Millisecond))
	for _, m := range members {
		reading.Go(func() {
			buf := make([]byte, 512)
			for {
				if _, err := m.conn.Read(buf); err != nil {
					return
				}
				m.last.Store(int64(w.watch.Elapsed()))
			}
		})
	}

	operator := w.operator()
	say := func() { operator.PublishAcked("group/g", 1, "hello") }
	say()
	waitfor.MustHold(t, "everybody receives", func() bool {
		for _, m := range members {
			if m.last.Load() == 0 {
				return false
			}
		}
		return true
	})
	kicked, other := members[connected/2], members[0]
	w.exec(`DELETE FROM members WHERE grp = 'g' AND account = $1`, fmt.Sprintf("m%d", connected/2+1))
	kick := w.watch.Elapsed()
	for w.watch.Since(kick) < 1500*time.Millisecond {
		say()
	}
	waitfor.MustHold(t, "the others go on receiving", func() bool { return time.Duration(other.last.Load())-kick > 1200*time.Millisecond })
	took := time.Duration(kicked.last.Load()) - kick
	t.Logf("last delivery %v after the commit of the removal", max(took, 0).Round(time.Millisecond))
	if took > time.Second {
		t.Errorf("the last delivery came %v after the removal, want less than 1 s", took)
	}
}
