package broker

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/chat"
	"mynah/internal/mqttest"
)

// The committer does not wait until refusals are told, of which a connection gets a
// hundred a second, and keeps no more of a connection that has had a thousand messages
// acknowledged at a time than of another.
func TestCommitterKeepsLittle(t *testing.T) {
	t.Parallel()
	secret := []byte("a secret for tests, 32 bytes or more")
	verifier, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer verifier.Close()
	b, err := New(Config{DataDir: t.TempDir(), MQTTAddr: "127.0.0.1:0", Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	token, err := authhook.Mint(secret, authhook.TokenClaims{Subject: "alice", TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	c := mqttest.Dial(t, b.MQTTAddr().String(), mqttest.Options{Version: 5, ClientID: "phone", Token: token})
	const n = 1000
	var all bytes.Buffer
	for id := 1; id <= n; id++ {
		all.WriteString("\x32\x0e\x00\x08user/bob" + string([]byte{byte(id >> 8), byte(id)}) + "\x00x")
	}
	c.SendBytes(all.Bytes())
	for range n {
		c.Expect(packets.Puback)
	}
	var held *conn
	b.conns.each(func(c *conn) bool {
		held = c
		return true
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := b.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if size := cap(held.acks); size > maxIdleAcks {
		t.Errorf("%d bytes are kept for acknowledgements", size)
	}

	b.refusals.waiting = make(chan refusalNotice, maxRefusalNotices)
	dropped := b.engine.Stats().Dropped.Load()
	for i := range 3 * refusalNoticesPerSecond {
		b.refusals.enqueue(&publication{c: held, topic: "group/g", mid: fmt.Sprint(i), refusal: chat.Refuse(chat.CodeNotMember, "no")})
		held.noticesSince = time.Now() // however slow this machine is
	}
	told := len(b.refusals.waiting)
	dropped = b.engine.Stats().Dropped.Load() - dropped
	if told != refusalNoticesPerSecond || int(dropped) != 2*refusalNoticesPerSecond { //nolint:gosec // some hundred
		t.Errorf("%d are told and %d dropped, want %d and %d", told, dropped, refusalNoticesPerSecond, 2*refusalNoticesPerSecond)
	}
}
