package e2e_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/golang-jwt/jwt/v5"

	"mynah/internal/waitfor"
)

// keys are the issuer's keys of the tests with a JWKS.
type keys struct {
	rsa *rsa.PrivateKey
	ec  *ecdsa.PrivateKey
	ed  ed25519.PrivateKey
}

func newKeys(tb testing.TB) keys {
	tb.Helper()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return keys{rsaKey, ecKey, edKey}
}

// write makes a JWKS file of the public keys, with the prefix before their ids.
func (k keys) write(tb testing.TB, path, prefix string) {
	tb.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	point, err := k.ec.PublicKey.Bytes()
	if err != nil {
		tb.Fatal(err)
	}
	edKey, ok := k.ed.Public().(ed25519.PublicKey)
	if !ok {
		tb.Fatal("not an Ed25519 key")
	}
	set := map[string]any{"keys": []map[string]string{
		{"kty": "RSA", "kid": prefix + "rsa", "n": b64(k.rsa.N.Bytes()), "e": b64(big.NewInt(int64(k.rsa.E)).Bytes())},
		{"kty": "EC", "kid": prefix + "ec", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])},
		{"kty": "OKP", "kid": prefix + "ed", "crv": "Ed25519", "x": b64(edKey)},
	}}
	raw, err := json.Marshal(set)
	if err != nil {
		tb.Fatal(err)
	}
	// Renamed into place, as whoever rotates keys does.
	if err := os.WriteFile(path+".new", raw, 0o644); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		tb.Fatal(err)
	}
}

// sign makes a token of the subject; kid may be empty.
func sign(tb testing.TB, method jwt.SigningMethod, key any, kid, sub string) string {
	tb.Helper()
	tok := jwt.NewWithClaims(method, jwt.MapClaims{"sub": sub, "exp": time.Now().Add(time.Hour).Unix()})
	if kid != "" {
		tok.Header["kid"] = kid
	}
	signed, err := tok.SignedString(key)
	if err != nil {
		tb.Fatal(err)
	}
	return signed
}

// tryConnect returns the return code of a 3.1.1 CONNACK.
func tryConnect(tb testing.TB, options *paho.ClientOptions) byte {
	tb.Helper()
	c := paho.NewClient(options.SetConnectRetry(false))
	t, ok := c.Connect().(*paho.ConnectToken)
	if !ok {
		tb.Fatal("paho: not a connect token")
	}
	if !t.WaitTimeout(deadline) {
		tb.Fatal("paho: no answer to CONNECT")
	}
	if t.Error() == nil {
		c.Disconnect(0)
		return 0
	}
	if t.ReturnCode() == 0 {
		tb.Fatalf("paho: %v", t.Error())
	}
	return t.ReturnCode()
}

// brokerWithKeys starts a broker alone that believes a JWKS file.
func brokerWithKeys(t *testing.T, k keys) (n *node, jwks string) {
	t.Helper()
	jwks = filepath.Join(t.TempDir(), "jwks.json")
	k.write(t, jwks, "")
	n = start(t, "broker", "--data-dir", t.TempDir(), "--jwks", jwks, "--log-level", "debug",
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	return n, jwks
}

// Every token that should not be believed is refused at CONNECT, and the log has
// a line about it but never the token.
func TestTokensRefused(t *testing.T) {
	t.Parallel()
	n := shared(t)
	k := newKeys(t)
	withKeys, _ := brokerWithKeys(t, k)
	public, err := x509.MarshalPKIXPublicKey(&k.rsa.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	hour := time.Now().Add(time.Hour).Unix()
	hs := func(claims jwt.MapClaims) string {
		signed, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(secret))
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}

	cases := []struct {
		name  string
		node  *node
		token string
	}{
		{"no token", n, ""},
		{"not a token", n, "swordfish"},
		{"expired", n, hs(jwt.MapClaims{"sub": "alice", "exp": time.Now().Add(-time.Minute).Unix()})},
		{"not yet valid", n, hs(jwt.MapClaims{"sub": "alice", "exp": hour, "nbf": time.Now().Add(10 * time.Minute).Unix()})},
		{"no exp", n, hs(jwt.MapClaims{"sub": "alice"})},
		{"no sub", n, hs(jwt.MapClaims{"exp": hour})},
		{"bad id", n, hs(jwt.MapClaims{"sub": "alice/#", "exp": hour})},
		{"id too long", n, hs(jwt.MapClaims{"sub": strings.Repeat("a", 65), "exp": hour})},
		{"unknown role", n, hs(jwt.MapClaims{"sub": "alice", "exp": hour, "role": "root"})},
		{"wrong signature", n, sign(t, jwt.SigningMethodHS256, []byte("another secret of 32 bytes or more"), "", "alice")},
		{"alg none", n, sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "", "alice")},
		{"HS512 with the right secret", n, sign(t, jwt.SigningMethodHS512, []byte(secret), "", "alice")},
		{"RS256 where only a secret is set", n, sign(t, jwt.SigningMethodRS256, k.rsa, "rsa", "alice")},
		{"HS256 with the RSA public key, PEM", withKeys, sign(t, jwt.SigningMethodHS256, publicPEM, "rsa", "alice")},
		{"HS256 with the RSA public key, DER", withKeys, sign(t, jwt.SigningMethodHS256, public, "rsa", "alice")},
		{"unknown key id", withKeys, sign(t, jwt.SigningMethodRS256, k.rsa, "other", "alice")},
		{"key of another kind", withKeys, sign(t, jwt.SigningMethodES256, k.ec, "rsa", "alice")},
		{"alg none beside keys", withKeys, sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, "rsa", "alice")},
	}
	for _, test := range cases {
		code := tryConnect(t, pahoOptions(test.node, unique("c"), test.token))
		if code != codeBadCredentials && code != codeNotAuthorised {
			t.Errorf("%s, 3.1.1: return code %d, want 4 or 5", test.name, code)
		}
		if test.token == "" {
			continue
		}
		for _, log := range []*output{test.node.log, test.node.stdout} {
			if strings.Contains(log.String(), test.token) {
				t.Errorf("%s: the token stands in the log", test.name)
			}
		}
	}
	js := newJS(t)
	e := js.connect(t, "ws://"+n.http+"/mqtt", cases[2].token, nil)
	if code := e.Packet.ReasonCode; e.Event != "error" || code != 0x86 && code != 0x87 {
		t.Errorf("expired, MQTT 5: %+v, want reason 0x86 or 0x87", e)
	}
	if _, ok := n.log.await(func(line string) bool { return strings.Contains(line, "expired") }, nil); !ok {
		t.Error("the log has no line about the expired token")
	}
}

// CONNACK return codes of 3.1.1, section 3.2.2.3.
const (
	codeBadCredentials = 4
	codeNotAuthorised  = 5
)

// Keys of every supported kind are believed, and rotated without a restart.
func TestJWKS(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	n, jwks := brokerWithKeys(t, k)
	connects := func(k keys, prefix string) map[string]byte {
		return map[string]byte{
			"RS256":         tryConnect(t, pahoOptions(n, "c", sign(t, jwt.SigningMethodRS256, k.rsa, prefix+"rsa", "alice"))),
			"PS256":         tryConnect(t, pahoOptions(n, "c", sign(t, jwt.SigningMethodPS256, k.rsa, prefix+"rsa", "alice"))),
			"ES256":         tryConnect(t, pahoOptions(n, "c", sign(t, jwt.SigningMethodES256, k.ec, prefix+"ec", "alice"))),
			"EdDSA":         tryConnect(t, pahoOptions(n, "c", sign(t, jwt.SigningMethodEdDSA, k.ed, prefix+"ed", "alice"))),
			"without a kid": tryConnect(t, pahoOptions(n, "c", sign(t, jwt.SigningMethodEdDSA, k.ed, "", "alice"))),
		}
	}
	for what, code := range connects(k, "") {
		if code != 0 {
			t.Errorf("%s: refused with %d", what, code)
		}
	}

	next := newKeys(t)
	next.write(t, jwks, "next-")
	waitfor.MustHold(t, "the new keys to be believed", func() bool {
		return tryConnect(t, pahoOptions(n, "c", sign(t, jwt.SigningMethodES256, next.ec, "next-ec", "alice"))) == 0
	})
	for what, code := range connects(k, "") {
		if code == 0 {
			t.Errorf("%s: a key that was taken away is still believed", what)
		}
	}
}

// A token may come as password, as Authorization header or in the address.
func TestTokenByWebSocket(t *testing.T) {
	t.Parallel()
	n := shared(t)
	alice := unique("alice")
	tok := token(t, alice)
	for name, connect := range map[string]func(*jsClient) jsEvent{
		"query": func(c *jsClient) jsEvent {
			return c.send(t, map[string]any{"do": "connect", "url": "ws://" + n.http + "/mqtt?access_token=" + tok, "options": map[string]any{"protocolVersion": 4}})
		},
		"header": func(c *jsClient) jsEvent {
			return c.send(t, map[string]any{"do": "connect", "url": "ws://" + n.http + "/mqtt", "options": map[string]any{
				"protocolVersion": 5, "wsOptions": map[string]any{"headers": map[string]string{"Authorization": "Bearer " + tok}},
			}})
		},
	} {
		c := newJS(t)
		if e := connect(c); e.Event != "connect" {
			t.Errorf("token by %s: %s", name, e.Error)
			continue
		}
		c.subscribe(t, "user/"+alice, 1)
		c.publish(t, "user/"+alice, 1, "by "+name)
		if e := c.waitText(t, "by "+name); e.From != alice {
			t.Errorf("token by %s: %+v", name, e)
		}
	}
	if strings.Contains(n.log.String(), tok) {
		t.Error("the token stands in the log")
	}
}

// The connection ends with the token, and lives on with a fresh one.
func TestExpiryAndRenewal(t *testing.T) {
	t.Parallel()
	n := shared(t)
	alice, bob := unique("alice"), unique("bob")
	// Each its own, made when it is needed: a busy machine may take seconds
	// between two connections.
	soon := func() string {
		return token(t, alice, jwt.MapClaims{"exp": float64(time.Now().Add(6*time.Second).UnixMilli()) / 1e3})
	}

	js := newJS(t)
	if e := js.connect(t, "ws://"+n.http+"/mqtt", soon(), nil); e.Event != "connect" {
		t.Fatalf("MQTT.js does not connect: %s", e.Error)
	}
	old := dial(t, n, "old", soon())
	renewed := dial(t, n, "renewed", soon())
	renewed.pub(t, "$mynah/token", 1, token(t, alice)) // while there is time
	stranger := dial(t, n, "stranger", soon())
	stranger.Publish("$mynah/token", 1, false, token(t, bob)) // another subject's renews nothing

	e := js.event(t, "disconnect", func(e jsEvent) bool { return e.Event == "disconnect" })
	if e.Packet.ReasonCode != 0x87 || e.Packet.Properties.ReasonString == "" {
		t.Errorf("MQTT 5 at expiry: %+v, want reason 0x87 with a reason string", e.Packet)
	}
	for name, c := range map[string]*pahoClient{"3.1.1": old, "with another's token": stranger} {
		waitfor.MustHold(t, name+" connection to end at expiry", func() bool { return !c.IsConnected() })
	}
	renewed.sub(t, "user/"+alice, 1)
	renewed.pub(t, "user/"+alice, 1, "alive")
	renewed.waitText(t, "alive")
}

// `mynah token` needs no server, and its tokens are believed.
func TestTokenCommand(t *testing.T) {
	t.Parallel()
	n := shared(t)
	alice, group := unique("alice"), unique("group")
	status, stdout, stderr := execute(t, "token", "--sub", alice, "--group", group, "--jwt-secret", secret,
		"--acl-pub", "sensors/#", "--acl-sub", "sensors/#", "--ttl", "5m")
	if status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	c := dial(t, n, "c", strings.TrimSpace(stdout))
	c.sub(t, "group/"+group, 1)
	c.sub(t, "sensors/+", 1)
	c.pub(t, "group/"+group, 1, "hello")
	c.waitText(t, "hello")
}

// Tokens of an identity provider are let in with the claims that are named, and open no
// group otherwise.
func TestForeignTokens(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	jwks := filepath.Join(t.TempDir(), "jwks.json")
	k.write(t, jwks, "")
	foreign := func(n *node, claims jwt.MapClaims) *pahoClient {
		claims["exp"] = time.Now().Add(time.Hour).Unix()
		tok := jwt.NewWithClaims(jwt.SigningMethodRS256, claims)
		tok.Header["kid"] = "rsa"
		signed, err := tok.SignedString(k.rsa)
		if err != nil {
			t.Fatal(err)
		}
		return dial(t, n, unique("c"), signed)
	}
	claims := func() jwt.MapClaims {
		return jwt.MapClaims{"sub": "auth0|5f", "teams": []string{"Eng Team", "eng"}, "groups": []string{"board"}, "role": "admin"}
	}
	group := func(c *pahoClient, id string) byte {
		tok, ok := c.Subscribe("group/"+id, 1, nil).(*paho.SubscribeToken)
		if !ok {
			t.Fatal("paho: not a subscribe token")
		}
		if !tok.WaitTimeout(deadline) {
			t.Fatal("paho: no SUBACK")
		}
		return tok.Result()["group/"+id]
	}
	const refused = 0x80
	for _, test := range []struct {
		args       []string
		eng, board byte
	}{{nil, refused, refused}, {[]string{"--jwt-claim", "groups=teams"}, 1, refused}} {
		n := start(t, append([]string{
			"broker", "--data-dir", t.TempDir(), "--jwks", jwks,
			"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0",
		}, test.args...)...)
		c := foreign(n, claims())
		c.sub(t, "user/auth0~7C5f", 1)
		c.pub(t, "user/auth0~7C5f", 1, "hello")
		if e := c.wait(t, "hello", func(d delivery) bool { return d.text() == "hello" }).open(t); e.From != "auth0~7C5f" {
			t.Errorf("from %s", e.From)
		}
		if eng, board := group(c, "eng"), group(c, "board"); eng != test.eng || board != test.board {
			t.Errorf("%v: group/eng %#x, group/board %#x; want %#x, %#x", test.args, eng, board, test.eng, test.board)
		}
	}
}
