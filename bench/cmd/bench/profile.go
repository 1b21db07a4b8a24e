package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
)

// saveProfile fetches a profile of Mynah's broker and writes it to a file:
// "heap", or "profile", which is the processor time over some seconds. It does
// nothing without --profiles.
func (t *target) saveProfile(ctx context.Context, kind string, seconds int) error {
	if t.profiles == "" || t.name != mynah {
		return nil
	}
	url := fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/%s", t.metricsPort, kind)
	if seconds > 0 {
		url += fmt.Sprintf("?seconds=%d", seconds)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("profile: %s: %s", url, resp.Status)
	}
	if err := os.MkdirAll(t.profiles, 0o750); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(t.profiles, fmt.Sprintf("%s-%s.pprof", filepath.Base(t.dir), kind))) //nolint:gosec // a folder of the user's choice
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}

// startCPUProfile profiles the broker's processor time for some seconds. The returned
// function waits for the end.
func (t *target) startCPUProfile(ctx context.Context, seconds int) (wait func() error) {
	done := make(chan error, 1)
	go func() { done <- t.saveProfile(ctx, "profile", seconds) }()
	return func() error { return <-done }
}
