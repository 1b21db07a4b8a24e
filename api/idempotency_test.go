package api_test

import (
	"bytes"
	"net/http"
	"sync"
	"testing"

	"mynah/authhook"
)

func TestRepeatedCallCreatesNothingMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin, other := w.token("boss", authhook.RoleAdmin), w.token("boss2", authhook.RoleAdmin)
	make := func(token, key, name string) *reply {
		return w.do(http.MethodPost, "/v1/devices", token, map[string]any{"name": name}, "Idempotency-Key", key)
	}
	first := make(admin, "k1", "meter").want(http.StatusCreated)
	again := make(admin, "k1", "meter").want(http.StatusCreated)
	if !bytes.Equal(first.Body, again.Body) || first.Header.Get("Location") != again.Header.Get("Location") || first.Header.Get("Location") == "" {
		t.Errorf("another answer:\n%s%s", first.Body, again.Body)
	}
	make(admin, "k1", "another").problem(http.StatusUnprocessableEntity, "key_reused")
	make(other, "k1", "another").want(http.StatusCreated) // keys are each caller's own
	make(admin, "", "meter").want(http.StatusCreated)     // without a key every call counts
	make(admin, "with space", "meter").problem(http.StatusUnprocessableEntity, "invalid")
	var kept int
	must(t, w.db.QueryRow(t.Context(), `SELECT count(*) FROM idempotency WHERE position($1::bytea IN body) > 0`, []byte(first.get("credential.token")[:40])).Scan(&kept))
	if kept != 0 {
		t.Error("the kept answer shows the token to whoever reads the table")
	}
	// A call that failed may be repeated, with another body too.
	w.do(http.MethodPost, "/v1/devices", admin, map[string]any{"id": "system"}, "Idempotency-Key", "k2").problem(http.StatusConflict, "conflict")
	w.do(http.MethodPost, "/v1/devices", admin, map[string]any{"id": "fine"}, "Idempotency-Key", "k2").want(http.StatusCreated)
	w.exec(`UPDATE idempotency SET created_at = now() - interval '25 hours'`)
	must(t, w.api.Sweep(t.Context()))
	if got := make(admin, "k1", "meter").want(http.StatusCreated); bytes.Equal(got.Body, first.Body) {
		t.Error("remembered after a day")
	}
}

// Guards against a client that repeats a call because the first is slow.
func TestConcurrentRepeatsCreateOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	admin := w.token("boss", authhook.RoleAdmin)
	answers := make([]*reply, 8)
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() {
			answers[i] = w.do(http.MethodPost, "/v1/devices", admin, map[string]any{"name": "meter"}, "Idempotency-Key", "k").want(http.StatusCreated)
		})
	}
	all.Wait()
	for _, a := range answers {
		if !bytes.Equal(a.Body, answers[0].Body) {
			t.Fatal("different answers")
		}
	}
	var devices int
	must(t, w.db.QueryRow(t.Context(), `SELECT count(*) FROM devices`).Scan(&devices))
	if devices != 1 {
		t.Errorf("%d devices made", devices)
	}
}
