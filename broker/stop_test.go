package broker_test

import (
	"context"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/internal/mqttest"
)

// When the broker stops, every MQTT 5 client is told so (reason 0x8B), however many there
// are: one that is cut off without a word takes that for a fault of the network.
func TestAllAreToldOfTheStop(t *testing.T) {
	t.Parallel()
	b := mustStart(t, t.TempDir(), nil)
	clients := make([]*mqttest.Client, 100)
	for i := range clients {
		clients[i] = mqttest.Dial(t, b.MQTTAddr().String(), v5(user(t, "alice", string(rune('A'+i)))))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := b.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	for i, c := range clients {
		if pk := c.Ended(); pk.FixedHeader.Type != packets.Disconnect || pk.ReasonCode != packets.ErrServerShuttingDown.Code {
			t.Errorf("client %d: the last packet is of type %d with reason %#x, want DISCONNECT with 0x8B", i, pk.FixedHeader.Type, pk.ReasonCode)
		}
	}
}
