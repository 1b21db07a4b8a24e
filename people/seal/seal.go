// Package seal encrypts small texts that are kept in the database with secrets
// that are not: AES-256-GCM, with a key that HKDF-SHA256 makes of the secret.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

// ErrSealed is returned for what was sealed with another secret or for another
// purpose, or was changed since.
var ErrSealed = errors.New("sealed with another secret")

// Seal encrypts a text with the secret. purpose tells apart what one secret is
// used for; it is not secret.
func Seal(secret []byte, purpose string, text []byte) ([]byte, error) {
	c, err := aead(secret, purpose)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, c.NonceSize(), c.NonceSize()+len(text)+c.Overhead())
	_, _ = rand.Read(nonce) // never fails
	return c.Seal(nonce, nonce, text, nil), nil
}

// Open decrypts what Seal made. It returns ErrSealed if the secret or the purpose
// is another one.
func Open(secret []byte, purpose string, sealed []byte) ([]byte, error) {
	c, err := aead(secret, purpose)
	if err != nil {
		return nil, err
	}
	if len(sealed) < c.NonceSize() {
		return nil, ErrSealed
	}
	text, err := c.Open(nil, sealed[:c.NonceSize()], sealed[c.NonceSize():], nil)
	if err != nil {
		return nil, ErrSealed
	}
	return text, nil
}

func aead(secret []byte, purpose string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, purpose, 32)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	return cipher.NewGCM(block)
}
