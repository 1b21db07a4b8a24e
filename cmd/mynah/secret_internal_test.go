package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// However a setting is printed, its secret is not in it.
func TestSecretsAreNotPrinted(t *testing.T) {
	t.Parallel()
	const hidden = "hunter2-hunter2-hunter2"
	cfg := Config{
		Identity: Identity{JWTSecret: hidden},
		Database: Database{DatabaseURL: "postgres://mynah:" + hidden + "@db:5432/mynah?sslpassword=" + hidden},
		People: People{
			SMTPURL: "smtp://user:" + hidden + "@mail:587", WeChatSecret: hidden, SMSWebhookSecret: hidden,
			OIDCSecret: map[string]Secret{"google": hidden},
		},
	}
	var log bytes.Buffer
	logger := (&Logging{LogLevel: "debug", LogFormat: "json"}).logger(&log)
	logger.Info("settings", "config", cfg, "secret", cfg.JWTSecret, "url", cfg.DatabaseURL, "group", slog.GroupValue(slog.Any("secret", cfg.JWTSecret)))
	raw, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for how, text := range map[string]string{
		"%v": fmt.Sprintf("%v", cfg), "%+v": fmt.Sprintf("%+v", cfg), "%#v": fmt.Sprintf("%#v", cfg),
		"JSON": string(raw), "log": log.String(),
	} {
		if strings.Contains(text, hidden) {
			t.Errorf("printed by %s: %s", how, text)
		}
	}
	if cfg.DatabaseURL.String() != "postgres://mynah:xxxxx@db:5432/mynah?sslpassword=xxxxx" {
		t.Errorf("the address without its passwords: %s", cfg.DatabaseURL)
	}
}

// Tokens and passwords that somebody else's error or address holds are taken out of
// the log as well.
func TestLogRedacts(t *testing.T) {
	t.Parallel()
	const token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		log := (&Logging{LogLevel: "info", LogFormat: format}).logger(&out)
		log.Info("connected with "+token, "url", "/mqtt?access_token="+token, "err", fmt.Errorf("dial: %w", errors.New("postgres://mynah:hunter2@db/x: "+token)))
		log.With("token", "opaque").WithGroup("request").Info("asked", "Authorization", "Bearer opaque", "path", "/v1/me")
		for _, hidden := range []string{token, "hunter2", "opaque", "c2lnbmF0dXJl"} {
			if strings.Contains(out.String(), hidden) {
				t.Errorf("%s: %s is in the log:\n%s", format, hidden, &out)
			}
		}
		for _, kept := range []string{"connected with", "postgres://mynah:", "/v1/me"} {
			if !strings.Contains(out.String(), kept) {
				t.Errorf("%s: %q is gone from the log:\n%s", format, kept, &out)
			}
		}
	}
}
