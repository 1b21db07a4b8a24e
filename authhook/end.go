package authhook

import (
	"context"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/chat"
)

// End ends a connection whose holder may not go on: an MQTT 5 client is sent
// DISCONNECT with 0x87 and what ClientError says of the reason, then the
// connection is closed. It is what a Hook does if it is told nothing else, and
// waits at most endPatience for a client that does not read.
func End(cl *mqtt.Client, _ *Identity, reason error) {
	code := packets.ErrNotAuthorized
	code.Reason = ClientError(reason).Reason
	if cl.Properties.ProtocolVersion == 5 && cl.Net.Conn != nil {
		_ = cl.Net.Conn.SetWriteDeadline(time.Now().Add(endPatience)) // it is closed below whatever comes of it
		_ = cl.WritePacket(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Disconnect},
			ReasonCode:  code.Code,
			Properties:  packets.Properties{ReasonString: code.Reason},
		})
	}
	cl.Stop(code)
}

// end logs the end of a connection and brings it about.
func (h *Hook) end(l *live, reason error) {
	id := l.id.Load()
	h.cfg.Log.Info("connection ended", "remote", l.cl.Net.Remote, "client", clip(l.cl.ID), "subject", id.Subject, "reason", reason)
	h.cfg.End(l.cl, id, reason)
}

// endSoon ends a connection on a goroutine of its own, once.
func (h *Hook) endSoon(l *live, reason error) {
	l.mu.Lock()
	first := !l.ended
	l.ended = true
	l.mu.Unlock()
	if first {
		h.endMarked(l, reason)
	}
}

// endMarked is endSoon for a connection that the caller has marked as ended.
func (h *Hook) endMarked(l *live, reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return
	}
	h.running.Go(func() { h.end(l, reason) })
}

// changed follows the directory: who may be connected. Memberships are the
// broker's to follow.
func (h *Hook) changed(c Change) {
	switch c.Kind {
	case ChangeDisabled:
		h.epoch.Add(1) // before looking: see still
		h.clients.each(func(l *live) {
			id := l.id.Load()
			if id.Subject == c.Subject && (c.Session == "" || id.Session == c.Session || id.TokenID == c.Session) {
				h.endSoon(l, refusedToken)
			}
		})
	case ChangeAll:
		h.epoch.Add(1)
		select {
		case h.recheck <- struct{}{}:
		default: // is about to be done anyway
		}
	}
}

// recheckLoop asks about everybody who is connected whenever the directory may
// have missed something. It does so on a goroutine of its own, since the
// directory tells one change at a time and may have to wait for its answers.
func (h *Hook) recheckLoop() {
	for {
		select {
		case <-h.stopped:
			return
		case <-h.recheck:
		}
		h.clients.each(h.recheckOne)
	}
}

// recheckOne ends a connection that the directory now refuses. One that cannot
// tell refuses nobody: what was allowed stays allowed.
func (h *Hook) recheckOne(l *live) {
	select {
	case <-h.stopped:
		return
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.Timeout)
	defer cancel()
	err := h.mayConnect(ctx, l.id.Load())
	if err != nil && ClientError(err).Code != chat.CodeUnavailable {
		h.endSoon(l, err)
	}
}
