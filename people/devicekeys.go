package people

import (
	"container/list"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"mynah/authhook"
	"mynah/chat"
	"mynah/schema"
	"mynah/schema/pgtx"
)

// deviceKIDPrefix begins the ids of devices' keys. The API gives them out, so no
// device can take the id of another key.
const deviceKIDPrefix = "device."

func isDeviceKID(kid string) bool { return strings.HasPrefix(kid, deviceKIDPrefix) }

// maxDeviceKeys is how many devices' keys are remembered for the time that
// PostgreSQL is away; some 5 MB.
const maxDeviceKeys = 10_000

// deviceKey is a device's public key and what its tokens may say.
type deviceKey struct {
	kid     string
	public  crypto.PublicKey
	subject string
	role    authhook.Role
	groups  []string
	pub     []string
	sub     []string
}

// deviceKeys looks up devices' keys. PostgreSQL is asked every time, so that a
// key that was disabled is refused at once; what it last said counts only while
// it cannot be reached.
type deviceKeys struct {
	db *pgtx.DB

	mu    sync.Mutex // guards what follows
	order *list.List // of *deviceKey, the most recently used first
	known map[string]*list.Element
}

func newDeviceKeys(db *pgtx.DB) *deviceKeys {
	return &deviceKeys{db: db, order: list.New(), known: map[string]*list.Element{}}
}

func (d *deviceKeys) lookUp(ctx context.Context, kid string) (*deviceKey, bool) {
	ctx, cancel := context.WithTimeout(ctx, readKeysTimeout)
	defer cancel()
	key := &deviceKey{kid: kid}
	var jwk []byte
	err := d.db.Pool().QueryRow(ctx, schema.SelectDeviceKey, kid).
		Scan(&jwk, &key.subject, &key.role, &key.groups, &key.pub, &key.sub)
	if err == nil {
		key.public, err = parseDeviceJWK(jwk)
	}
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return d.remembered(kid)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.known[kid]; ok {
		d.order.Remove(e)
		delete(d.known, kid)
	}
	if err != nil {
		return nil, false
	}
	d.known[kid] = d.order.PushFront(key)
	if d.order.Len() > maxDeviceKeys {
		oldest := d.order.Back()
		d.order.Remove(oldest)
		delete(d.known, oldest.Value.(*deviceKey).kid)
	}
	return key, true
}

func (d *deviceKeys) remembered(kid string) (*deviceKey, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.known[kid]
	if !ok {
		return nil, false
	}
	d.order.MoveToFront(e)
	return e.Value.(*deviceKey), true
}

var errNotTheHolder = errors.New("a device's key signs for that device only")

// Bind makes of the identity that a token signed with key kid claims what it may
// be: a device's key signs for that device alone, and what it says of its role,
// groups and filters is replaced by what was registered. Of a token signed with one of
// the API's own keys it notes the key, and nothing else. It is asked after the signature was
// verified (authhook.KeyBinder).
func (k *Keys) Bind(ctx context.Context, kid string, id *authhook.Identity) error {
	if !isDeviceKID(kid) {
		id.Key = kid // so that what is connected with it ends when it is distrusted
		return nil
	}
	// The verifier asked for the key a moment ago, so it is in memory.
	key, ok := k.devices.remembered(kid)
	if !ok {
		if key, ok = k.devices.lookUp(ctx, kid); !ok {
			return errNotTheHolder
		}
	}
	if id.Subject != key.subject {
		return errNotTheHolder
	}
	id.Role, id.Groups, id.Pub, id.Sub = key.role, key.groups, key.pub, key.sub
	id.Session = kid // so that what is connected with the key can be ended by its id
	return nil
}

// parseDeviceJWK reads the public key of a device: Ed25519 (RFC 8037) or P-256
// (RFC 7518 section 6.2), and nothing that looks like a private one.
func parseDeviceJWK(raw []byte) (crypto.PublicKey, error) {
	var jwk struct {
		KTY string `json:"kty"`
		Crv string `json:"crv"`
		X   string `json:"x"`
		Y   string `json:"y"`
		D   string `json:"d"`
	}
	if err := json.Unmarshal(raw, &jwk); err != nil {
		return nil, fmt.Errorf("read device key: %w", err)
	}
	if jwk.D != "" {
		return nil, chat.Refuse(chat.CodeInvalid, "The key holds its private part (d). Keep that on the device, make a new pair and register the public part only.")
	}
	x, errX := base64.RawURLEncoding.DecodeString(jwk.X)
	y, errY := base64.RawURLEncoding.DecodeString(jwk.Y)
	if errX != nil || errY != nil {
		return nil, errDeviceJWK
	}
	switch {
	case jwk.KTY == "OKP" && jwk.Crv == "Ed25519" && len(x) == ed25519.PublicKeySize && jwk.Y == "":
		return ed25519.PublicKey(x), nil
	case jwk.KTY == "EC" && jwk.Crv == "P-256" && len(x) == 32 && len(y) == 32:
		point := append(append([]byte{4}, x...), y...)
		if _, err := ecdh.P256().NewPublicKey(point); err != nil { // not on the curve
			return nil, errDeviceJWK
		}
		public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
		if err != nil {
			return nil, errDeviceJWK
		}
		return public, nil
	}
	return nil, errDeviceJWK
}

var errDeviceJWK = chat.Refuse(chat.CodeInvalid, "The key must be a public JSON Web Key: Ed25519 (kty OKP) or P-256 (kty EC).")
