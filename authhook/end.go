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
// waits at most disconnectTimeout for a client that does not read.
func End(cl *mqtt.Client, _ *Identity, reason error) {
	code := packets.ErrNotAuthorized
	code.Reason = ClientError(reason).Reason
	if cl.Properties.ProtocolVersion == 5 && cl.Net.Conn != nil {
		_ = cl.Net.Conn.SetWriteDeadline(time.Now().Add(disconnectTimeout)) // it is closed below whatever comes of it
		_ = cl.WritePacket(packets.Packet{
			FixedHeader: packets.FixedHeader{Type: packets.Disconnect},
			ReasonCode:  code.Code,
			Properties:  packets.Properties{ReasonString: code.Reason},
		})
	}
	cl.Stop(code)
}

// end logs the end of a connection and ends it.
func (h *Hook) end(l *liveClient, reason error) {
	id := l.id.Load()
	h.cfg.Log.Info("connection ended", "remote", l.cl.Net.Remote, "client", truncateForLog(l.cl.ID), "subject", id.Subject, "reason", reason)
	h.cfg.End(l.cl, id, reason)
}

// endAsync ends a connection on a new goroutine, once.
func (h *Hook) endAsync(l *liveClient, reason error) {
	l.mu.Lock()
	first := !l.ended
	l.ended = true
	l.mu.Unlock()
	if first {
		h.endMarkedAsync(l, reason)
	}
}

// endMarkedAsync is endAsync for a connection that the caller has marked as
// ended.
func (h *Hook) endMarkedAsync(l *liveClient, reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return
	}
	h.running.Go(func() { h.end(l, reason) })
}

// onDirectoryChange handles changes of who may be connected. The broker handles
// changes of memberships.
func (h *Hook) onDirectoryChange(c Change) {
	switch c.Kind {
	case ChangeDisabled:
		h.epoch.Add(1) // before looking: see recheckIdentity
		h.clients.each(func(l *liveClient) {
			id := l.id.Load()
			if id.Subject == c.Subject && (c.Session == "" || id.Session == c.Session || id.TokenID == c.Session) {
				h.endAsync(l, refusedToken)
			}
		})
	case ChangeAll:
		h.epoch.Add(1)
		select {
		case h.recheckAll <- struct{}{}:
		default: // is about to be done anyway
		}
	}
}

// recheckLoop checks every connected client again when the directory may have
// missed a change. It has a goroutine of its own, since the directory reports
// one change at a time, and a check may have to wait.
func (h *Hook) recheckLoop() {
	for {
		select {
		case <-h.stopped:
			return
		case <-h.recheckAll:
		}
		h.clients.each(h.recheckOne)
	}
}

// recheckOne ends a connection that the directory now refuses. A directory
// that cannot answer refuses nobody.
func (h *Hook) recheckOne(l *liveClient) {
	select {
	case <-h.stopped:
		return
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.Timeout)
	defer cancel()
	err := h.mayConnect(ctx, l.id.Load())
	if err != nil && ClientError(err).Code != chat.CodeUnavailable {
		h.endAsync(l, err)
	}
}
