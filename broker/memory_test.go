package broker_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/internal/mqttest"
)

// What clients send is not kept with what the broker keeps of it: a filter is not to keep its
// SUBSCRIBE, nor a connection its CONNECT or the buffer of the largest packet that came.
// Mochi's codec hands out pieces of the packet, so that a session could hold a hundred MiB.
func TestPacketsAreNotKept(t *testing.T) { //nolint:paralleltest // it looks at the heap
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	const much = 60_000 // bytes of each packet
	padding := packets.Properties{User: []packets.UserProperty{{Key: "padding", Val: strings.Repeat("x", much)}}}
	alice := mqttest.Dial(t, addr, v5(user(t, "alice", "phone")))
	var clients []*mqttest.Client
	for _, tc := range []struct {
		name string
		send func(i int)
	}{
		{"filters", func(i int) {
			alice.SubscribeWith(padding, packets.Subscription{Filter: fmt.Sprintf("presence/p%d", i)})
		}},
		{"connections", func(i int) {
			o := v5(user(t, "bob", fmt.Sprint(i)))
			o.Properties = padding
			clients = append(clients, mqttest.Dial(t, addr, o))
		}},
		{"wills", func(i int) {
			o := v5(user(t, "carol", fmt.Sprint(i)))
			o.Properties, o.Will = padding, &packets.Packet{TopicName: "user/alice", Payload: []byte("gone")}
			clients = append(clients, mqttest.Dial(t, addr, o))
		}},
		{"messages", func(i int) {
			clients[i].PublishAcked("user/dave/signal", 1, padding.User[0].Val)
		}},
	} {
		const n = 150
		before := heap()
		for i := range n {
			tc.send(i)
		}
		if grown := heap() - before; grown > n*much/3 { // less than half of it is what connections need, at both ends
			t.Errorf("%s: the heap has grown by %d KiB, of %d KiB that were sent", tc.name, grown>>10, n*much>>10)
		}
	}
	runtime.KeepAlive(clients)
}

// heap returns how many bytes are in use.
func heap() int {
	var m runtime.MemStats
	for range 2 { // what was in a pool goes with the second
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc) //nolint:gosec // far below
}
