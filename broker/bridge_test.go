package broker_test

import (
	"testing"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/internal/mqttest"
)

// The notifications of a Mosquitto bridge, a will and a retained message on
// $SYS/broker/connection/<id>/state, are accepted of everybody and go nowhere; beside them
// nobody publishes below $SYS. (e2e has a real bridge.)
func TestBridgeState(t *testing.T) {
	t.Parallel()
	const state = "$SYS/broker/connection/hall.mynah/state"
	b := mustStart(t, t.TempDir(), nil)
	addr := b.MQTTAddr().String()
	admin := mqttest.Dial(t, addr, mqttest.Options{ClientID: "a", Token: mustToken(t, authhook.TokenClaims{Subject: "admin", Role: authhook.RoleAdmin})})
	admin.Subscribe(1, "$SYS/broker/connection/#", "user/admin/error")
	for _, version := range []byte{4, 5} {
		o := plain(t, "bridge")
		o.Version = version
		o.Will = &packets.Packet{FixedHeader: packets.FixedHeader{Qos: 1, Retain: true}, TopicName: state, Payload: []byte("0")}
		c := mqttest.Dial(t, addr, o)
		if c.Connack.ReasonCode != 0 {
			t.Fatalf("version %d: CONNACK %#x", version, c.Connack.ReasonCode)
		}
		c.Subscribe(0, "user/bridge/error")
		for qos := range byte(3) {
			pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos, Retain: true}, TopicName: state, Payload: []byte("1")}
			if qos > 0 {
				pk.PacketID = c.ID()
			}
			c.Send(pk)
			if qos > 0 {
				if ack := c.Next(); version == 5 && ack.ReasonCode != packets.CodeNoMatchingSubscribers.Code {
					t.Errorf("QoS %d: acknowledged with %#x", qos, ack.ReasonCode)
				}
			}
		}
		c.ExpectNothing() // and nothing is explained
		if ack := c.PublishAcked("$SYS/broker/connection/x", 1, "1"); version == 5 && ack.ReasonCode != packets.ErrNotAuthorized.Code {
			t.Errorf("elsewhere: %#x", ack.ReasonCode)
		}
		c.CloseAbruptly()
		o.Will.TopicName = "$SYS/broker/uptime"
		if mqttest.Dial(t, addr, o).Connack.ReasonCode == 0 {
			t.Error("a will elsewhere below $SYS was accepted")
		}
	}
	mqttest.Dial(t, addr, plain(t, "bridge")).Sync() // so the will of the one before has fired
	admin.ExpectNothing()
	late := mqttest.Dial(t, addr, mqttest.Options{ClientID: "b", Token: mustToken(t, authhook.TokenClaims{Subject: "admin", Role: authhook.RoleAdmin})})
	late.Subscribe(1, "$SYS/broker/connection/#")
	late.ExpectNothing()
}
