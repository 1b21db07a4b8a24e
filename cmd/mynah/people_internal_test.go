package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// An operator whose sign-in service chooses ids is told that strangers can register
// them, until the flag has been set to whatever is wanted.
func TestWarnOfOpenRegistration(t *testing.T) {
	t.Parallel()
	secret := Identity{JWTSecret: "of 32 bytes or more, which it is"}
	for _, test := range []struct {
		people   People
		identity Identity
		warns    bool
	}{
		{People{}, secret, true},
		{People{}, Identity{JWKS: []string{"https://example.com/keys"}}, true},
		{People{}, Identity{}, false},
		{People{Registration: "open"}, secret, false},
		{People{Registration: "assigned"}, secret, false},
	} {
		var log bytes.Buffer
		test.people.warn(test.identity, slog.New(slog.NewTextHandler(&log, nil)))
		if warned := strings.Contains(log.String(), "--registration"); warned != test.warns {
			t.Errorf("%+v: warned %v, want %v: %s", test, warned, test.warns, log.String())
		}
	}
}
