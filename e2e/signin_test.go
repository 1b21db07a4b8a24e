package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// Guards against sign-ins that take the cores from the chat: fifty people who sign in by
// password at once leave a conversation at most twice as slow, at the median. Rounds with
// and without them alternate, so that what else the machine does is in both.
func TestSignInsLeaveTheChat(t *testing.T) {
	const (
		people   = 50
		rounds   = 9
		messages = 60 // a round and kind
	)
	n := start(t, "serve", "--data-dir", t.TempDir(), "--jwt-secret", secret, "--address-limits", "1000",
		"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
	const password = "correct horse battery"
	post := func(ctx context.Context, path string, body map[string]string) (int, error) {
		text, err := json.Marshal(body)
		if err != nil {
			return 0, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+n.http+path, bytes.NewReader(text))
		if err != nil {
			return 0, err
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	ids := make([]string, people)
	for i := range ids {
		ids[i] = unique("signer")
		if status, err := post(t.Context(), "/v1/accounts", map[string]string{"id": ids[i], "password": password}); err != nil || status != http.StatusCreated {
			t.Fatalf("register: %d, %v", status, err)
		}
	}

	alice, bob := unique("alice"), unique("bob")
	from, to := dial(t, n, "canary", token(t, alice)), dial(t, n, "canary", token(t, bob))
	to.sub(t, "user/"+bob, 1)
	said := 0
	say := func() float64 {
		said++
		text := fmt.Sprintf("canary %d", said)
		began := time.Now()
		from.pub(t, "user/"+bob, 1, text)
		to.wait(t, text, func(d delivery) bool { return d.text() == text })
		return time.Since(began).Seconds() * 1000
	}
	round := func() float64 {
		times := make([]float64, messages)
		for i := range times {
			times[i] = say()
		}
		return median(times)
	}
	round() // warm

	var quiet, loaded []float64
	signedIn := 0
	for range rounds {
		quiet = append(quiet, round())

		ctx, stop := context.WithCancel(t.Context())
		var signing sync.WaitGroup
		var mu sync.Mutex // guards signedIn
		first := make(chan struct{}, people)
		for _, id := range ids {
			signing.Go(func() {
				for ctx.Err() == nil {
					status, err := post(ctx, "/v1/sessions/password", map[string]string{"id": id, "password": password})
					if err == nil && status != http.StatusCreated && status != http.StatusServiceUnavailable {
						t.Errorf("sign in: status %d", status)
						return
					}
					if err == nil && status == http.StatusCreated {
						mu.Lock()
						signedIn++
						mu.Unlock()
						select {
						case first <- struct{}{}:
						default:
						}
					}
				}
			})
		}
		select {
		case <-first: // hashing is under way
		case <-time.After(deadline):
			t.Fatal("nobody can sign in")
		}
		loaded = append(loaded, round())
		stop()
		signing.Wait()
	}
	ratios := make([]float64, rounds)
	for i := range ratios {
		ratios[i] = loaded[i] / quiet[i]
	}
	ratio := median(ratios)
	t.Logf("median of a message %.2f ms, with sign-ins %.2f ms, ratio %.2f of %.2f; %d signed in", median(quiet), median(loaded), ratio, ratios, signedIn)
	if signedIn < rounds {
		t.Errorf("%d signed in, want at least one in each of %d rounds", signedIn, rounds)
	}
	if ratio > 2 {
		t.Errorf("with sign-ins a message takes %.1f times as long, want at most 2", ratio)
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
