package main

import (
	"io"
	"log/slog"
	"regexp"
	"strings"
)

// logger returns the process's logger. As a last line of defence it takes out
// what looks like a token, whoever logs it and wherever it stands: in an error,
// in an address with access_token=….
func (l *Logging) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.LogLevel)); err != nil {
		level = slog.LevelInfo // the grammar allows nothing else
	}
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: redactAttr}
	if l.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// secretKeys are names under which nothing is ever logged.
var secretKeys = map[string]bool{
	"token": true, "access_token": true, "refresh_token": true, "password": true,
	"secret": true, "jwt_secret": true, "authorization": true,
}

func redactAttr(_ []string, attr slog.Attr) slog.Attr {
	if secretKeys[strings.ToLower(attr.Key)] {
		return slog.String(attr.Key, redacted)
	}
	switch attr.Value.Kind() {
	case slog.KindString:
		if text := attr.Value.String(); mayHoldSecret(text) {
			return slog.String(attr.Key, redactText(text))
		}
	case slog.KindAny:
		if err, ok := attr.Value.Any().(error); ok {
			return slog.String(attr.Key, redactText(err.Error()))
		}
	default:
	}
	return attr
}

var (
	// A JSON Web Token begins with the base64 of `{"`.
	jwtPattern = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*\.?[A-Za-z0-9_-]*`)
	// user:password@ in an address.
	userinfoPattern = regexp.MustCompile(`(://[^/\s:@]*):[^/\s@]+@`)
)

func mayHoldSecret(text string) bool {
	return strings.Contains(text, "eyJ") || strings.Contains(text, "://")
}

// redactText takes tokens and the passwords of addresses out of text.
func redactText(text string) string {
	if !mayHoldSecret(text) {
		return text
	}
	text = jwtPattern.ReplaceAllString(text, redacted)
	return userinfoPattern.ReplaceAllString(text, "$1:xxxxx@")
}
