package authhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// MaxClientIDLen is the longest client id that is accepted, in bytes. MQTT asks
// for 23 at least (3.1.1 section 3.1.3.1); a session remembers its id.
const MaxClientIDLen = 256

// defaultTimeout bounds what a CONNECT or a SUBSCRIBE waits for keys and for the
// directory.
const defaultTimeout = 5 * time.Second

// disconnectTimeout bounds the write of a DISCONNECT to a client that may not read.
const disconnectTimeout = 2 * time.Second

var (
	errClientID   = fmt.Errorf("the client id is longer than %d bytes", MaxClientIDLen)
	errAuthMethod = errors.New("enhanced authentication is not supported: send the token as the password")
	errWill       = errors.New("will refused")
	errDirectory  = errors.New("directory refuses")
)

// Tokener is a connection that brought a token with it, as a WebSocket does in
// its Authorization header or its query. A connection that wraps another passes
// the method on.
type Tokener interface {
	// Token returns the token, or "" if there was none.
	Token() string
}

// HookConfig is what a Hook works with.
type HookConfig struct {
	Verifier *Verifier    // required
	Policy   *Policy      // default: without a database
	Limiter  *Limiter     // default: limits nothing
	Log      *slog.Logger // default: nobody
	// Timeout bounds what a CONNECT or a SUBSCRIBE waits for keys and for
	// the directory, default 5 s.
	Timeout time.Duration
	// End ends a connection whose token expired (ErrExpired) or whose holder
	// or token the directory no longer lets in (a *chat.Error). It may block and is called once a connection, on a
	// goroutine of its own. Default: an MQTT 5 client is sent DISCONNECT with
	// 0x87 and the reason, then the connection is closed.
	End func(cl *mqtt.Client, id *Identity, reason error)
	// Now is the clock for expiry, default time.Now.
	Now func() time.Time
}

// Hook makes Mochi ask tokens and the Policy. Add it before every other hook:
// they find the identity of a client with Identity from OnConnect until their own
// OnDisconnect, where it is gone already.
//
// It also ends connections at the expiry of their tokens, and when the directory
// reports an account as disabled or a token as revoked.
type Hook struct {
	mqtt.HookBase
	cfg     HookConfig
	clients registry

	refusals *RefusalLog

	epoch atomic.Uint64 // counts what the directory said about who may be connected

	once       sync.Once // of Stop
	stopped    chan struct{}
	unwatch    func()
	recheckAll chan struct{} // holds one token when every client has to be checked again
	running    sync.WaitGroup
	mu         sync.Mutex // guards closing, so that nothing is started after Stop
	closing    bool
}

// NewHook returns the hook. It works at once; Stop (which Mochi calls on Close)
// ends what it started.
func NewHook(cfg HookConfig) (*Hook, error) {
	if cfg.Verifier == nil {
		return nil, errors.New("authhook: a hook needs a verifier")
	}
	if cfg.Policy == nil {
		cfg.Policy = NewPolicy(nil)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.End == nil {
		cfg.End = End
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	h := &Hook{cfg: cfg, refusals: NewRefusalLog(cfg.Now), stopped: make(chan struct{}), recheckAll: make(chan struct{}, 1)}
	h.clients.now = cfg.Now
	h.clients.expired = func(l *liveClient) { h.endMarkedAsync(l, ErrExpired) }
	h.clients.untilSweep.Store(minConnectsPerSweep)
	h.unwatch = cfg.Policy.Directory().Watch(h.onDirectoryChange)
	h.running.Go(h.recheckLoop)
	return h, nil
}

// ID names the hook in Mochi's logs.
func (h *Hook) ID() string { return "authhook" }

// Provides says which of Mochi's events the hook takes part in.
func (h *Hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnDisconnect:
		return true
	}
	return false
}

// Stop ends what the hook started and waits for it. Connections are left alone
// and keep their identity, which no longer expires. It is harmless to repeat.
func (h *Hook) Stop() error {
	h.once.Do(func() {
		h.unwatch()
		h.mu.Lock()
		h.closing = true
		h.mu.Unlock()
		close(h.stopped)
		h.clients.each((*liveClient).stopTimer)
	})
	h.running.Wait()
	return nil
}

// OnConnect lets the client in or writes a CONNACK that says why not and returns
// an error, upon which Mochi closes the connection. On success the client has an
// identity and its id, under which Mochi looks up the session, is
// "subject/client id". An assigned client id (MQTT 5 section 3.2.2.3.7) is told
// to the client without the subject.
func (h *Hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	epoch := h.epoch.Load()
	id, err := h.admit(cl, pk)
	if err == nil {
		cl.ID = id.Subject + "/" + cl.ID // before others can see the client
		h.clients.set(cl, id)
		if err = h.recheckIdentity(id, epoch); err != nil {
			h.clients.forget(cl)
		}
	}
	if err != nil {
		h.logRefusedConnect(cl, err)
		return connectRefusalOf(err).refuse(cl)
	}
	return nil
}

// recheckIdentity checks an identity again that has just been given to a client. A
// revocation since epoch found no connection to end, or one with another identity.
func (h *Hook) recheckIdentity(id *Identity, epoch uint64) error {
	if h.epoch.Load() == epoch {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.Timeout)
	defer cancel()
	if err := h.mayConnect(ctx, id); err != nil {
		return &TokenError{Subject: id.Subject, Err: err}
	}
	return nil
}

// admit decides on a CONNECT.
func (h *Hook) admit(cl *mqtt.Client, pk packets.Packet) (*Identity, error) {
	if !h.cfg.Limiter.AllowConnect(cl.Net.Remote) {
		return nil, ErrThrottled
	}
	if len(cl.ID) > MaxClientIDLen {
		return nil, errClientID
	}
	if cl.Properties.Props.AuthenticationMethod != "" {
		return nil, errAuthMethod
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.cfg.Timeout)
	defer cancel()
	id, err := h.cfg.Verifier.Verify(ctx, connectToken(cl, pk))
	if err != nil {
		return nil, err
	}
	if err := h.mayConnect(ctx, id); err != nil {
		return nil, &TokenError{Subject: id.Subject, Err: err}
	}
	if pk.Connect.WillFlag {
		topic := pk.Connect.WillTopic
		if err := WhyNotPublish(id, topic, h.cfg.Policy.CanWill(ctx, id, topic)); err != nil {
			return nil, &TokenError{Subject: id.Subject, Err: fmt.Errorf("%w: topic %s: %w", errWill, quoteForLog(topic), err)}
		}
	}
	return id, nil
}

func (h *Hook) mayConnect(ctx context.Context, id *Identity) error {
	if err := refusal(h.cfg.Policy.Directory().MayConnect(ctx, id)); err != nil {
		return fmt.Errorf("%w: %w", errDirectory, err)
	}
	return nil
}

// connectToken finds the token: what the connection brought, else the password.
// White space around it is the shell's.
func connectToken(cl *mqtt.Client, pk packets.Packet) string {
	if t, ok := cl.Net.Conn.(Tokener); ok {
		if token := t.Token(); token != "" {
			return token
		}
	}
	return strings.TrimSpace(string(pk.Connect.Password))
}

// logRefusedConnect counts a refused CONNECT and logs it, unless there have been too many.
func (h *Hook) logRefusedConnect(cl *mqtt.Client, err error) {
	remote := cl.Net.Remote
	attrs := []any{"remote", remote, "client", truncateForLog(cl.ID), "reason", err}
	if te, ok := errors.AsType[*TokenError](err); ok && te.Subject != "" {
		attrs = append(attrs, "subject", te.Subject)
	}
	if errors.Is(err, ErrThrottled) {
		h.cfg.Log.Debug("connect refused", attrs...)
		return
	}
	if leftOut, ok := h.refusals.Refusal(remote); ok {
		if leftOut > 0 {
			attrs = append(attrs, "left_out", leftOut) // refusals that were not logged
		}
		h.cfg.Log.Warn("connect refused", attrs...)
	}
	if h.cfg.Limiter.Failed(remote) && h.refusals.throttling(remote) {
		h.cfg.Log.Warn("address throttled after too many refused connects", "remote", remote)
	}
}

// OnConnectAuthenticate confirms whom OnConnect let in, and nobody else.
func (h *Hook) OnConnectAuthenticate(cl *mqtt.Client, _ packets.Packet) bool {
	return h.Identity(cl) != nil
}

// OnDisconnect forgets the client.
func (h *Hook) OnDisconnect(cl *mqtt.Client, _ error, _ bool) { h.clients.forget(cl) }

// Identity returns the identity behind a client, or nil if it has none.
func (h *Hook) Identity(cl *mqtt.Client) *Identity {
	if l := h.clients.get(cl); l != nil {
		return l.id.Load()
	}
	return nil
}

// Renew replaces a client's identity by that of a fresh token and returns it. The
// token must be of the same subject and the same role: who wants another role
// connects anew, and is then asked about its will and subscriptions again. On an
// error, to be told to the client with ClientError, the old identity stays.
func (h *Hook) Renew(ctx context.Context, cl *mqtt.Client, token string) (*Identity, error) {
	old := h.Identity(cl)
	if old == nil {
		return nil, ErrNotConnected
	}
	epoch := h.epoch.Load()
	id, err := h.cfg.Verifier.Verify(ctx, strings.TrimSpace(token))
	if err != nil {
		return nil, err
	}
	if id.Subject != old.Subject || id.Role != old.Role {
		return nil, &TokenError{Subject: id.Subject, Err: ErrOtherHolder}
	}
	if err := h.mayConnect(ctx, id); err != nil {
		return nil, &TokenError{Subject: id.Subject, Err: err}
	}
	if cl.Closed() { // meanwhile: not to be remembered anew
		return nil, ErrNotConnected
	}
	l := h.clients.set(cl, id)
	if err := h.recheckIdentity(id, epoch); err != nil {
		h.endAsync(l, err)
		return nil, err
	}
	return id, nil
}
