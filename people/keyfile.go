package people

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// The public keys are kept in a file for a start while PostgreSQL is away: a JWK Set
// (RFC 7517 section 5), as the API publishes it. It is replaced as a whole whenever
// the keys that were read are others, so that one that was distrusted does not come
// back with the next start.

// LoadFile has tokens verified with the keys that KeysConfig.File has, and reports how many
// keys that is: 0 if there is no file. It is for the time until Start succeeds, which
// reads them again. Nothing can be signed with them. It returns an error if the file
// cannot be read or is damaged, and then nothing of it is used.
func (k *Keys) LoadFile() (n int, err error) {
	if k.cfg.File == "" {
		return 0, nil
	}
	raw, err := os.ReadFile(k.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the kept keys: %w", err)
	}
	ring, err := parseKeyFile(raw)
	if err != nil {
		return 0, fmt.Errorf("read the kept keys in %s, which the next reading from the database replaces: %w", k.cfg.File, err)
	}
	if !k.ring.CompareAndSwap(nil, ring) {
		return 0, nil // the database has been faster
	}
	return len(ring.public), nil
}

// parseKeyFile reads what saveFile has written.
func parseKeyFile(raw []byte) (*keyring, error) {
	var set struct {
		Keys []publicJWK `json:"keys"`
	}
	if err := json.Unmarshal(raw, &set); err != nil {
		return nil, fmt.Errorf("not a JWK Set: %w", err)
	}
	ring := &keyring{public: map[string]ed25519.PublicKey{}, jwks: raw}
	for _, key := range set.Keys {
		public, err := base64.RawURLEncoding.DecodeString(key.X)
		if err != nil || len(public) != ed25519.PublicKeySize || key.KTY != "OKP" || key.Crv != "Ed25519" || key.KID == "" {
			return nil, fmt.Errorf("key %q is not a public Ed25519 key", key.KID)
		}
		ring.public[key.KID] = public
	}
	return ring, nil
}

// saveFile writes the keys of a reading to the file unless it has them. k.reading is held.
func (k *Keys) saveFile(ctx context.Context, jwks []byte) {
	if k.cfg.File == "" || string(jwks) == k.saved {
		return
	}
	err := replaceFile(k.cfg.File, jwks)
	if err == nil {
		k.saved = string(jwks)
		return
	}
	// None is better than one with a key that is not to be believed any more.
	if gone := os.Remove(k.cfg.File); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	k.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "signing keys cannot be kept for a start while the database is away",
		slog.String("file", k.cfg.File), slog.Any("error", err))
}

// replaceFile puts content into the file: what was there before is there until the new one
// is whole and on disk.
func replaceFile(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("make its directory: %w", err)
	}
	file, err := os.CreateTemp(dir, filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("make a new file: %w", err)
	}
	_, err = file.Write(content)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return errors.Join(fmt.Errorf("write: %w", err), os.Remove(file.Name()))
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return errors.Join(fmt.Errorf("put the new file in place: %w", err), os.Remove(file.Name()))
	}
	folder, err := os.Open(dir) //nolint:gosec // the operator's data directory
	if err != nil {
		return fmt.Errorf("open its directory: %w", err)
	}
	if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
		return fmt.Errorf("sync its directory: %w", err)
	}
	return nil
}
