package seal_test

import (
	"bytes"
	"errors"
	"testing"

	"mynah/people/seal"
)

func TestSeal(t *testing.T) {
	t.Parallel()
	text := []byte("a text")
	sealed, err := seal.Seal([]byte("secret"), "test", text)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, text) {
		t.Error("not encrypted")
	}
	if again, err := seal.Seal([]byte("secret"), "test", text); err != nil || bytes.Equal(again, sealed) {
		t.Errorf("sealed twice alike: %v", err)
	}
	if got, err := seal.Open([]byte("secret"), "test", sealed); err != nil || !bytes.Equal(got, text) {
		t.Errorf("opened: %q, %v", got, err)
	}
	changed := bytes.Clone(sealed)
	changed[len(changed)-1] ^= 1
	for name, open := range map[string]func() ([]byte, error){
		"another secret":  func() ([]byte, error) { return seal.Open([]byte("other"), "test", sealed) },
		"another purpose": func() ([]byte, error) { return seal.Open([]byte("secret"), "other", sealed) },
		"changed":         func() ([]byte, error) { return seal.Open([]byte("secret"), "test", changed) },
		"short":           func() ([]byte, error) { return seal.Open([]byte("secret"), "test", sealed[:5]) },
	} {
		if _, err := open(); !errors.Is(err, seal.ErrSealed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
