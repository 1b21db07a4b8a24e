package main

import (
	"log/slog"
	"net/url"
)

// redacted stands in logs and in printed settings where a secret was.
const redacted = "[redacted]"

// Secret is a setting that must not be seen: every way of printing it that fmt,
// slog and encoding/json know gives a placeholder. Use Reveal to have the value.
type Secret string

// Reveal returns the value.
func (s Secret) Reveal() string { return string(s) }

// String returns a placeholder, or "" for no secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString does for %#v what String does for the other verbs.
func (s Secret) GoString() string { return s.String() }

// LogValue does it for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText does it for encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// SecretURL is an address that may hold a password. Printed, it has a
// placeholder in the password's place.
type SecretURL string

// Reveal returns the address with its password.
func (u SecretURL) Reveal() string { return string(u) }

// String returns the address without its password, and nothing of one that
// cannot be understood, since nobody knows where its password is.
func (u SecretURL) String() string {
	if u == "" {
		return ""
	}
	parsed, err := url.Parse(string(u))
	if err != nil || parsed.Scheme == "" {
		return redacted
	}
	if _, ok := parsed.User.Password(); ok {
		parsed.User = url.UserPassword(parsed.User.Username(), "xxxxx")
	}
	query := parsed.Query()
	for _, name := range []string{"password", "sslpassword"} {
		if query.Has(name) {
			query.Set(name, "xxxxx")
			parsed.RawQuery = query.Encode()
		}
	}
	return parsed.String()
}

// GoString does for %#v what String does for the other verbs.
func (u SecretURL) GoString() string { return u.String() }

// LogValue does it for slog.
func (u SecretURL) LogValue() slog.Value { return slog.StringValue(u.String()) }

// MarshalText does it for encoders.
func (u SecretURL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }
