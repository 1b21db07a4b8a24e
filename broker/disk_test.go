package broker_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/broker"
	"mynah/broker/msglog"
	"mynah/internal/mqttest"
	"mynah/internal/waitfor"
)

// A disk that fills up: publishers are told, subscribers and clients that come back go on
// with what there is, and it takes messages again when there is room. A 3.1.1 publisher,
// for whom the protocol has no such answer, is disconnected, so that it tries again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	mount := t.TempDir()
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatalf("this test fills a file system of its own and needs the right to mount one (run it as root): %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(mount, syscall.MNT_DETACH) })
	b := mustStart(t, filepath.Join(mount, "data"), func(c *broker.Config) {
		c.Log = msglog.Options{MemTableBytes: 1 << 20, MinFree: 12 << 20, Ballast: 4 << 20, DiskPoll: 20 * time.Millisecond}
	})
	t.Cleanup(func() { // before the unmount
		ctx, cancel := context.WithTimeout(context.Background(), mqttest.Timeout)
		defer cancel()
		_ = b.Stop(ctx)
	})
	addr := b.MQTTAddr().String()
	o := keep(user(t, "alice", "phone"))
	alice := mqttest.Dial(t, addr, o)
	alice.Subscribe(1, "user/alice")
	five, three := mqttest.Dial(t, addr, v5(user(t, "bob", "five"))), mqttest.Dial(t, addr, user(t, "bob", "three"))
	known := `{"body":"before","mid":"m1"}`
	five.PublishAcked("user/alice", 1, known)
	three.Subscribe(0, "user/bob/error")

	other := filepath.Join(mount, "other")
	if err := os.WriteFile(other, make([]byte, 40<<20), 0o600); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	stored := 1
	var ack packets.Packet
	for deadline := time.Now().Add(mqttest.Timeout); ; stored++ {
		if ack = five.PublishAcked("user/alice", 1, strings.Repeat("x", 10000)); ack.ReasonCode != 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the disk is full and messages are still accepted")
		}
	}
	if ack.ReasonCode != packets.ErrQuotaExceeded.Code || !strings.HasPrefix(ack.Properties.ReasonString, "log_full") {
		t.Errorf("PUBACK %#x %q, want 0x97 log_full", ack.ReasonCode, ack.Properties.ReasonString)
	}
	if ack := five.PublishAcked("user/alice", 2, "x"); ack.ReasonCode != packets.ErrQuotaExceeded.Code {
		t.Errorf("PUBREC %#x, want 0x97", ack.ReasonCode)
	}
	// What is stored needs no room: a refusal would make the client publish it as new.
	if ack := five.PublishAcked("user/alice", 1, known); ack.ReasonCode != 0 {
		t.Errorf("a message that was stored before got %#x %q", ack.ReasonCode, ack.Properties.ReasonString)
	}
	three.Publish("user/alice", 1, "x")
	if r := mustRefusal(t, three); r.Code != "log_full" {
		t.Errorf("explained as %+v", r)
	}
	three.ExpectEnd()
	seen := map[uint64]bool{}
	for len(seen) < stored/2 {
		seen[alice.ReceiveAcked().Seq] = true
	}
	alice.CloseAbruptly()
	alice = mqttest.Dial(t, addr, o) // comes back although nothing can be appended
	if codes := alice.Subscribe(1, "user/alice/error"); codes[0] != 1 {
		t.Errorf("SUBACK %#x", codes[0])
	}
	for len(seen) < stored { // some may come again whose acknowledgement was cut off
		seen[alice.ReceiveAcked().Seq] = true
	}
	alice.ExpectNothing()

	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	waitfor.MustHold(t, "there is room again, so a message is accepted", func() bool {
		return five.PublishAcked("user/alice", 1, "after").ReasonCode == 0
	})
	if m := alice.ReceiveAcked(); m.Body != "after" {
		t.Errorf("got %s", m.Payload)
	}
}
