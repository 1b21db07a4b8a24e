package authhook_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/chat"
	"mynah/internal/mqttest"
	"mynah/internal/waitfor"
)

// door is a Directory whose MayConnect and Watch can be steered.
type door struct {
	town
	mu   sync.Mutex
	shut map[string]error
	tell func(authhook.Change)
}

func (d *door) MayConnect(_ context.Context, id *authhook.Identity) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shut[id.Subject]
}

func (d *door) shutTo(subject string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shut == nil {
		d.shut = map[string]error{}
	}
	d.shut[subject] = err
}

func (d *door) Watch(fn func(authhook.Change)) (stop func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tell = fn
	return func() {}
}

func (d *door) change(c authhook.Change) {
	d.mu.Lock()
	fn := d.tell
	d.mu.Unlock()
	fn(c)
}

// will adds a will to a CONNECT.
func will(topic string) func(*mqttest.Options) {
	return func(o *mqttest.Options) { o.Will = &packets.Packet{TopicName: topic, Payload: []byte("gone")} }
}

// TestConnectRefused guards the first bad-input row and that of the will: the
// CONNACK of each protocol version, one log line, no token in it, no session.
func TestConnectRefused(t *testing.T) {
	t.Parallel()
	d := &door{}
	d.shutTo("shut", chat.Refuse(chat.CodeNotAllowed, "this account is disabled"))
	d.shutTo("dark", errDark)
	b := serve(t, authhook.HookConfig{Policy: authhook.NewPolicy(d)}, nil)
	hs := func(more map[string]any) string { return sign(jwt.SigningMethodHS256, secret, "", claims(more)) }
	for _, tc := range []struct {
		name    string
		id      string // client id
		token   string
		change  func(*mqttest.Options)
		v5, v3  byte
		reason  string // to the client, MQTT 5
		logged  string
		subject string
	}{
		{"no token", "c", "", nil, 0x87, 5, "not authorised", "no token", ""},
		{"text", "c", "open sesame", nil, 0x86, 4, "not authorised", "malformed token", ""},
		{"alg none", "c", sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "", claims(nil)), nil, 0x86, 4, "not authorised", "algorithm not accepted", ""},
		{"wrong signature", "c", sign(jwt.SigningMethodHS256, []byte(strings.Repeat("x", 32)), "", claims(nil)), nil, 0x86, 4, "not authorised", "bad signature", ""},
		{"no sub", "c", hs(map[string]any{"sub": nil}), nil, 0x86, 4, "not authorised", "no sub", ""},
		{"bad id", "c", hs(map[string]any{"sub": "a/b"}), nil, 0x86, 4, "not authorised", "is not an id", ""},
		{"expired", "c", hs(map[string]any{"exp": 1}), nil, 0x87, 5, "token expired", "token expired", "alice"},
		{"not yet valid", "c", hs(map[string]any{"nbf": 32503680000}), nil, 0x87, 5, "not authorised", "not yet valid", "alice"},
		{"disabled", "c", hs(map[string]any{"sub": "shut"}), nil, 0x87, 5, "this account is disabled", "disabled", "shut"},
		{"directory down", "c", hs(map[string]any{"sub": "dark"}), nil, 0x88, 3, "cannot check that right now; try again", "unavailable", "dark"},
		{"will to who has blocked", "c", hs(nil), will("user/bob"), 0x87, 5, "blocked", "will refused", "alice"},
		{"will to a group", "c", hs(nil), will("group/other"), 0x87, 5, "not in", "will refused", "alice"},
		{"will on presence", "c", hs(nil), will("presence/alice"), 0x87, 5, "only the broker publishes to presence/<id>, when somebody comes or goes; tell other things on user/<id>/signal or group/<id>/signal", "will refused", "alice"},
		{"will outside the acl", "c", hs(nil), will("elsewhere"), 0x87, 5, `acl.pub of your token has no filter for "elsewhere"; ask for a token that has one, or publish to user/<id> or group/<id>`, "will refused", "alice"},
		{"will with a wildcard", "c", hs(nil), will("user/+"), 0x90, 5, "not a topic name; wildcards are for subscriptions", "will refused", "alice"},
		{"client id too long", strings.Repeat("c", 257), hs(nil), nil, 0x85, 2, "the client id is longer than 256 bytes", "client id", ""},
	} {
		for _, version := range []byte{3, 4, 5} {
			before := b.log.String()
			c, ack := b.connect(t, version, tc.id, tc.token, tc.change)
			want := tc.v3
			if version == 5 {
				want = tc.v5
			}
			if ack.FixedHeader.Type != packets.Connack || ack.ReasonCode != want || ack.SessionPresent {
				t.Errorf("%s, version %d: CONNACK 0x%02x, want 0x%02x", tc.name, version, ack.ReasonCode, want)
			}
			if version == 5 && ack.Properties.ReasonString != tc.reason {
				t.Errorf("%s: told %q, want %q", tc.name, ack.Properties.ReasonString, tc.reason)
			}
			mustBeClosed(t, c)
			line := strings.TrimPrefix(b.log.String(), before)
			if strings.Count(line, "\n") != 1 || !strings.Contains(line, "connect refused") || !strings.Contains(line, "remote=127.0.0.1:") ||
				!strings.Contains(line, tc.logged) || tc.subject != "" && !strings.Contains(line, "subject="+tc.subject) {
				t.Errorf("%s: want one line about %q, got %q", tc.name, tc.logged, line)
			}
			for part := range strings.SplitSeq(tc.token, ".") {
				if len(part) > 8 && strings.Contains(line, part) {
					t.Errorf("%s: the log holds the token: %q", tc.name, line)
				}
			}
		}
	}
	if n := len(b.server.Clients.GetAll()); n != 0 {
		t.Errorf("%d refused clients have a session", n)
	}
}

// TestConnectEnhanced: MQTT 5's enhanced authentication is answered as section
// 4.12 asks.
func TestConnectEnhanced(t *testing.T) {
	t.Parallel()
	b := serve(t, authhook.HookConfig{}, nil)
	_, ack := b.connect(t, 5, "c", goodToken(authhook.TokenClaims{Subject: "alice"}), func(o *mqttest.Options) {
		o.Properties.AuthenticationMethod = "SCRAM-SHA-1"
	})
	if ack.ReasonCode != 0x8C {
		t.Errorf("CONNACK 0x%02x", ack.ReasonCode)
	}
}

// TestSessionBelongsToSubject guards broker/MOCHI.md's "a session belongs to the client
// id alone": two subjects with one client id must not meet.
func TestSessionBelongsToSubject(t *testing.T) {
	t.Parallel()
	b := serve(t, authhook.HookConfig{}, nil)
	aliceToken := goodToken(authhook.TokenClaims{Subject: "alice"})
	bobToken := goodToken(authhook.TokenClaims{Subject: "bob"})
	for _, version := range []byte{3, 4, 5} {
		keep := func(o *mqttest.Options) {
			o.KeepSession = true
			if version == 5 {
				o.Properties.SessionExpiryInterval, o.Properties.SessionExpiryIntervalFlag = 3600, true
			}
		}
		name := "phone" + string('0'+version)
		_, a := b.connected(t, version, name, aliceToken, keep)
		_, bob := b.connected(t, version, name, bobToken, keep)
		if a.ID != "alice/"+name || bob.ID != "bob/"+name {
			t.Errorf("sessions are %q and %q", a.ID, bob.ID)
		}
		if a.Closed() {
			t.Fatal("bob has taken alice's session over")
		}
		// Her own second connection does take it over.
		_, ack := b.connect(t, version, name, aliceToken, keep)
		<-b.events.sessions
		if !ack.SessionPresent || !a.Closed() {
			t.Errorf("version %d: alice does not find her session again", version)
		}
		if id := b.hook.Identity(bob); id == nil || id.Subject != "bob" {
			t.Errorf("bob is now %+v", id)
		}
	}
}

// TestAssignedClientID: what the client is told must lead it back to its session.
func TestAssignedClientID(t *testing.T) {
	t.Parallel()
	b := serve(t, authhook.HookConfig{}, nil)
	token := goodToken(authhook.TokenClaims{Subject: "alice"})
	_, ack := b.connect(t, 5, "", token, nil)
	assigned := ack.Properties.AssignedClientID
	first := <-b.events.sessions
	if assigned == "" || strings.Contains(assigned, "/") || first.ID != "alice/"+assigned {
		t.Fatalf("assigned %q, session %q", assigned, first.ID)
	}
	if _, second := b.connected(t, 5, assigned, token, nil); second.ID != first.ID {
		t.Errorf("with the assigned id the session is %q", second.ID)
	}
	if _, third := b.connected(t, 4, "", token, nil); !strings.HasPrefix(third.ID, "alice/") {
		t.Errorf("3.1.1 without a client id: session %q", third.ID)
	}
}

// TestTokenOfConnection: a WebSocket's token counts before the password, and
// without one the password does.
func TestTokenOfConnection(t *testing.T) {
	t.Parallel()
	token := goodToken(authhook.TokenClaims{Subject: "alice"})
	with := serve(t, authhook.HookConfig{}, func(c net.Conn) net.Conn { return conn{c, token} })
	if _, cl := with.connected(t, 4, "c", "", nil); cl.ID != "alice/c" {
		t.Errorf("session %q", cl.ID)
	}
	if _, cl := with.connected(t, 4, "d", "not a token", nil); cl.ID != "alice/d" {
		t.Errorf("session %q", cl.ID)
	}
	without := serve(t, authhook.HookConfig{}, func(c net.Conn) net.Conn { return conn{c, ""} })
	if _, cl := without.connected(t, 4, "c", " "+token+"\n", nil); cl.ID != "alice/c" {
		t.Errorf("session %q", cl.ID)
	}
}

// TestSubscribeRefused guards the third bad-input row: SUBACK says no and the
// connection stays.
func TestSubscribeRefused(t *testing.T) {
	t.Parallel()
	b := serve(t, authhook.HookConfig{Policy: authhook.NewPolicy(town{})}, nil)
	token := goodToken(authhook.TokenClaims{Subject: "alice", Sub: []string{"lab/#"}})
	for version, denied := range map[byte]byte{4: 0x80, 5: 0x87} {
		c, _ := b.connected(t, version, "c", token, nil)
		for _, filter := range []string{"#", "+/#", "user/+", "user/bob", "$share/x/user/bob", "user/#", "group/#", "$SYS/#", "group/other"} {
			if got := subscribed(t, c, filter); got != denied {
				t.Errorf("version %d, %s: SUBACK 0x%02x", version, filter, got)
			}
		}
		for _, filter := range []string{"user/alice", "group/+", "lab/#"} {
			if got := subscribed(t, c, filter); got != 1 {
				t.Errorf("version %d, %s: SUBACK 0x%02x", version, filter, got)
			}
		}
	}
}

// TestPlainTopics: the acl rules the topics outside the chat.
func TestPlainTopics(t *testing.T) {
	t.Parallel()
	b := serve(t, authhook.HookConfig{}, nil)
	reader := goodToken(authhook.TokenClaims{Subject: "reader", Sub: []string{"lab/#"}})
	writer := goodToken(authhook.TokenClaims{Subject: "writer", Pub: []string{"lab/+", "other"}})
	keep := func(o *mqttest.Options) { o.KeepSession = true }
	r, cl := b.connected(t, 4, "r", reader, keep)
	if subscribed(t, r, "lab/#") != 1 {
		t.Fatal("not subscribed")
	}
	w, _ := b.connected(t, 4, "w", writer, nil)
	w.Publish("lab/a/b", 0, "not allowed")
	w.Publish("other", 0, "not asked for")
	w.Publish("lab/a", 0, "1")
	if pk := r.Next(); pk.TopicName != "lab/a" || string(pk.Payload) != "1" {
		t.Errorf("got %s %q", pk.TopicName, pk.Payload)
	}
	r.Send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
	waitfor.MustHold(t, "reader forgotten", func() bool { return b.hook.Identity(cl) == nil })
}

// TestExpiryEndsConnection: PROTOCOL.md, "when the token expires the connection
// ends", with 0x87 and a reason for MQTT 5.
func TestExpiryEndsConnection(t *testing.T) {
	t.Parallel()
	b := serve(t, authhook.HookConfig{}, nil)
	// Made when it is needed, and good for long enough to connect with on a busy machine.
	token := func() string { return goodToken(authhook.TokenClaims{Subject: "alice", TTL: 4 * time.Second}) }
	c4, _ := b.connected(t, 4, "c4", token(), nil)
	c5, _ := b.connected(t, 5, "c5", token(), nil)
	stays, _ := b.connected(t, 4, "stays", goodToken(authhook.TokenClaims{Subject: "alice"}), nil)
	if pk := c5.Next(); pk.FixedHeader.Type != packets.Disconnect || pk.ReasonCode != 0x87 || pk.Properties.ReasonString != "token expired" {
		t.Errorf("got %s 0x%02x %q", packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode, pk.Properties.ReasonString)
	}
	mustBeClosed(t, c5)
	mustBeClosed(t, c4)
	if subscribed(t, stays, "user/alice") != 1 {
		t.Error("a connection with a longer token ended too")
	}
	if !strings.Contains(b.log.String(), `msg="connection ended"`) {
		t.Error("not logged")
	}
}

// TestExpiryFollowsClock: a timer that fires before the clock has reached exp, as
// all do for tokens of more than an hour and after the clock was set back, ends
// nothing.
func TestExpiryFollowsClock(t *testing.T) {
	t.Parallel()
	var looked, ahead atomic.Int64
	start := time.Now()
	ended := make(chan error, 1)
	b := serve(t, authhook.HookConfig{
		Now: func() time.Time {
			looked.Add(1)
			return start.Add(time.Duration(ahead.Load()))
		},
		End: func(_ *mqtt.Client, _ *authhook.Identity, reason error) { ended <- reason },
	}, nil)
	_, cl := b.connected(t, 4, "c", goodToken(authhook.TokenClaims{Subject: "alice"}), nil)
	b.hook.SetIdentity(cl, &authhook.Identity{Subject: "alice", Expires: start.Add(20 * time.Millisecond)})
	before := looked.Load()
	waitfor.MustHold(t, "timer fired a few times", func() bool { return looked.Load() > before+3 })
	select {
	case reason := <-ended:
		t.Fatalf("ended before its time: %v", reason)
	default:
	}
	ahead.Store(int64(time.Second))
	if reason := <-ended; !errors.Is(reason, authhook.ErrExpired) {
		t.Errorf("ended for %v", reason)
	}
}

// TestRenew: a fresh token of the same holder keeps the connection, any other
// token changes nothing.
func TestRenew(t *testing.T) {
	t.Parallel()
	d := &door{}
	b := serve(t, authhook.HookConfig{Policy: authhook.NewPolicy(d)}, nil)
	soon := func() string { return goodToken(authhook.TokenClaims{Subject: "alice", TTL: 4 * time.Second}) }
	c, cl := b.connected(t, 5, "c", soon(), nil)
	first := b.hook.Identity(cl)
	for name, tc := range map[string]struct {
		token string
		want  error
	}{
		"another subject": {goodToken(authhook.TokenClaims{Subject: "bob"}), authhook.ErrOtherHolder},
		"another role":    {goodToken(authhook.TokenClaims{Subject: "alice", Role: authhook.RoleAdmin}), authhook.ErrOtherHolder},
		"expired":         {goodToken(authhook.TokenClaims{Subject: "alice", IssuedAt: time.Now().Add(-48 * time.Hour)}), authhook.ErrExpired},
		"nonsense":        {"x", authhook.ErrMalformed},
		"none":            {"", authhook.ErrNoToken},
	} {
		if _, err := b.hook.Renew(t.Context(), cl, tc.token); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	d.shutTo("alice", chat.Refuse(chat.CodeNotAllowed, "disabled"))
	if _, err := b.hook.Renew(t.Context(), cl, goodToken(authhook.TokenClaims{Subject: "alice"})); authhook.ClientError(err).Reason != "disabled" {
		t.Errorf("disabled: got %v", err)
	}
	d.shutTo("alice", nil)
	if b.hook.Identity(cl) != first {
		t.Fatal("a refused renewal changed the identity")
	}
	id, err := b.hook.Renew(t.Context(), cl, goodToken(authhook.TokenClaims{Subject: "alice", Groups: []string{"new"}})+"\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := b.hook.Identity(cl); got != id || len(got.Groups) != 1 {
		t.Errorf("identity is %+v", got)
	}
	// One that expires later, and is not renewed, tells when that time is over.
	later, _ := b.connected(t, 4, "later", soon(), nil)
	mustBeClosed(t, later)
	if subscribed(t, c, "user/alice") != 1 {
		t.Error("the renewed connection ended")
	}
	if _, err := b.hook.Renew(t.Context(), &mqtt.Client{}, ""); !errors.Is(err, authhook.ErrNotConnected) {
		t.Errorf("unknown client: got %v", err)
	}
}

// TestRevocationEndsConnections: at once, those concerned and no others. What was
// revoked is known to the directory alone, which also refuses it from then on.
func TestRevocationEndsConnections(t *testing.T) {
	t.Parallel()
	d := &door{}
	b := serve(t, authhook.HookConfig{Policy: authhook.NewPolicy(d)}, nil)
	clients := map[string]*mqttest.Client{}
	for name, claims := range map[string]authhook.TokenClaims{
		"token":   {Subject: "alice", TokenID: "t"},
		"session": {Subject: "alice", Session: "s"},
		"subject": {Subject: "bob"},
		"stays":   {Subject: "alice"},
	} {
		clients[name], _ = b.connected(t, 5, name, goodToken(claims), nil)
	}
	for name, c := range map[string]authhook.Change{
		"token": {Subject: "alice", Session: "t"}, "session": {Subject: "alice", Session: "s"}, "subject": {Subject: "bob"},
	} {
		c.Kind = authhook.ChangeDisabled
		d.change(c)
		pk := clients[name].Next()
		if pk.FixedHeader.Type != packets.Disconnect || pk.ReasonCode != 0x87 || pk.Properties.ReasonString == "" {
			t.Errorf("%s: got %s 0x%02x %q", name, packets.PacketNames[pk.FixedHeader.Type], pk.ReasonCode, pk.Properties.ReasonString)
		}
		mustBeClosed(t, clients[name])
	}
	if subscribed(t, clients["stays"], "user/alice") != 1 {
		t.Error("another connection of the subject ended")
	}
}

// TestDirectoryEndsConnections: a disabled account is disconnected when the
// directory says so, or says that it may have missed something.
func TestDirectoryEndsConnections(t *testing.T) {
	t.Parallel()
	d := &door{}
	b := serve(t, authhook.HookConfig{Policy: authhook.NewPolicy(d)}, nil)
	connect := func(subject, session string) *mqttest.Client {
		c, _ := b.connected(t, 5, "c"+session, goodToken(authhook.TokenClaims{Subject: subject, Session: session}), nil)
		return c
	}
	one, two, bob, carol := connect("alice", "1"), connect("alice", "2"), connect("bob", ""), connect("carol", "")

	d.change(authhook.Change{Kind: authhook.ChangeDisabled, Subject: "alice", Session: "1"})
	if pk := one.Next(); pk.ReasonCode != 0x87 {
		t.Errorf("DISCONNECT 0x%02x", pk.ReasonCode)
	}
	if subscribed(t, two, "user/alice") != 1 {
		t.Error("the other session ended")
	}
	d.change(authhook.Change{Kind: authhook.ChangeDisabled, Subject: "alice"})
	two.Next()
	mustBeClosed(t, two)

	d.shutTo("bob", chat.Refuse(chat.CodeNotAllowed, "disabled"))
	d.shutTo("carol", errDark)
	d.change(authhook.Change{Kind: authhook.ChangeAll})
	if pk := bob.Next(); pk.Properties.ReasonString != "disabled" {
		t.Errorf("told %q", pk.Properties.ReasonString)
	}
	mustBeClosed(t, bob)
	if subscribed(t, carol, "user/carol") != 1 {
		t.Error("a directory that cannot tell must disconnect nobody")
	}
}

// racingDoor lets a holder in and shuts the door behind it, before the caller can
// know: what happens when an account is disabled in the middle of a CONNECT.
type racingDoor struct {
	door
	asked atomic.Int64
}

func (d *racingDoor) MayConnect(ctx context.Context, id *authhook.Identity) error {
	d.asked.Add(1)
	err := d.door.MayConnect(ctx, id)
	if err == nil && id.Subject == "racer" {
		d.shutTo("racer", chat.Refuse(chat.CodeNotAllowed, "disabled"))
		d.change(authhook.Change{Kind: authhook.ChangeDisabled, Subject: "racer"})
	}
	return err
}

// TestDisabledWhileConnecting guards against a connection that the change came
// too early to end.
func TestDisabledWhileConnecting(t *testing.T) {
	t.Parallel()
	d := &racingDoor{}
	b := serve(t, authhook.HookConfig{Policy: authhook.NewPolicy(d)}, nil)
	if _, ack := b.connect(t, 5, "c", goodToken(authhook.TokenClaims{Subject: "racer"}), nil); ack.ReasonCode != 0x87 {
		t.Errorf("CONNACK 0x%02x", ack.ReasonCode)
	}
	b.connected(t, 5, "c", goodToken(authhook.TokenClaims{Subject: "alice"}), nil)
	if n := d.asked.Load(); n != 3 {
		t.Errorf("the directory was asked %d times: twice for the racer, once for alice", n)
	}
}

// TestEndWaitsForNobody: a client that does not read does not hold its end up.
func TestEndWaitsForNobody(t *testing.T) {
	t.Parallel()
	server, far := net.Pipe() // no buffer: a write blocks until it is read
	t.Cleanup(func() { _ = far.Close() })
	b := serve(t, authhook.HookConfig{}, nil)
	cl := b.server.NewClient(server, "t", "alice/c", false)
	cl.Properties.ProtocolVersion = 5
	authhook.End(cl, nil, authhook.ErrExpired)
	if !cl.Closed() {
		t.Error("still open")
	}
}

// TestThrottle: an address that keeps failing is answered without looking at its
// token, and its lines leave the log.
func TestThrottle(t *testing.T) {
	t.Parallel()
	remote := "192.0.2.7:1000"
	b := serve(t, authhook.HookConfig{
		Limiter: authhook.NewLimiter(authhook.LimiterConfig{FailureRate: 0.001, FailureBurst: 2}),
	}, func(c net.Conn) net.Conn { return from{c, remote} })
	for range 2 {
		if _, ack := b.connect(t, 5, "c", "x", nil); ack.ReasonCode != 0x86 {
			t.Fatalf("CONNACK 0x%02x", ack.ReasonCode)
		}
	}
	good := goodToken(authhook.TokenClaims{Subject: "alice"})
	if _, ack := b.connect(t, 5, "c", good, nil); ack.ReasonCode != 0x9F {
		t.Errorf("CONNACK 0x%02x", ack.ReasonCode)
	}
	if _, ack := b.connect(t, 4, "c", good, nil); ack.ReasonCode != 3 {
		t.Errorf("CONNACK %d", ack.ReasonCode)
	}
	if log := b.log.String(); strings.Count(log, "address throttled") != 1 || strings.Count(log, `level=WARN msg="connect refused"`) != 2 {
		t.Errorf("log:\n%s", log)
	}
}

// from is a connection with another remote address.
type from struct {
	net.Conn
	remote string
}

func (f from) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(f.remote))
}

// TestForgetsFailedConnects guards against identities that pile up: of clients
// that another hook refuses after us, for whom Mochi calls no OnDisconnect.
func TestForgetsFailedConnects(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, authhook.VerifierConfig{Secret: secret})
	later := func() time.Time { return time.Now().Add(2 * time.Minute) }
	hook := must(authhook.NewHook(authhook.HookConfig{Verifier: v, Now: later}))
	t.Cleanup(func() { _ = hook.Stop() })
	server := mqtt.New(nil)
	id := &authhook.Identity{Subject: "alice", Expires: time.Now().Add(time.Hour)}
	for range 5000 {
		cl := server.NewClient(nil, "t", "c", false)
		cl.Stop(nil)
		hook.SetIdentity(cl, id)
	}
	if n := hook.Connections(); n > 2048 {
		t.Errorf("%d identities of closed clients are held", n)
	}
}
