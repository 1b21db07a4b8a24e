package api_test

import (
	"net/http"
	"sync"
	"testing"
)

func (w *world) refresh(token string) *reply {
	w.tb.Helper()
	return w.do(http.MethodPost, "/v1/sessions/refresh", "", map[string]any{"refresh_token": token})
}

// Guards against a stolen refresh token that goes on working beside the owner's:
// whoever comes second ends the session for both.
func TestUsedRefreshTokenEndsTheSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.register("anna")
	var second, third person
	w.refresh(anna.RefreshToken).want(http.StatusOK).into(&second)
	w.refresh(second.RefreshToken).want(http.StatusOK).into(&third)
	if second.RefreshToken == anna.RefreshToken || third.RefreshToken == second.RefreshToken || third.Session != anna.Session {
		t.Fatal("not rotated")
	}
	// The one before the last: not what a lost answer could explain.
	w.refresh(anna.RefreshToken).problem(http.StatusUnauthorized, "unauthenticated")
	w.refresh(third.RefreshToken).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodGet, "/v1/me", third.AccessToken, nil).problem(http.StatusUnauthorized, "unauthenticated")
}

// Guards against people being signed out because an answer was lost on the way,
// and against a thief using that for long.
func TestLostRefreshAnswerIsGivenAgainForAMoment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.register("anna")
	var second, again person
	w.refresh(anna.RefreshToken).want(http.StatusOK).into(&second)
	w.refresh(anna.RefreshToken).want(http.StatusOK).into(&again)
	if second.RefreshToken != again.RefreshToken {
		t.Fatal("the second answer has another token")
	}
	w.exec(`UPDATE sessions SET rotated_at = now() - interval '31 seconds'`)
	w.refresh(anna.RefreshToken).problem(http.StatusUnauthorized, "unauthenticated")
	w.refresh(second.RefreshToken).problem(http.StatusUnauthorized, "unauthenticated")
}

// Guards against a guess that ends somebody's session.
func TestGuessedRefreshTokenEndsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.register("anna")
	guess := "rt_" + "AAAA" + anna.RefreshToken[7:]
	w.refresh(guess).problem(http.StatusUnauthorized, "unauthenticated")
	w.refresh("rt_short").problem(http.StatusUnauthorized, "unauthenticated")
	w.refresh("no token").problem(http.StatusUnauthorized, "unauthenticated")
	w.refresh(anna.RefreshToken).want(http.StatusOK)
}

// Guards against two tabs that refresh at once getting different tokens, of which
// one would end the session at its next use.
func TestConcurrentRefreshGivesOneToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.register("anna")
	answers := make([]person, 8)
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() { w.refresh(anna.RefreshToken).want(http.StatusOK).into(&answers[i]) })
	}
	all.Wait()
	for _, a := range answers {
		if a.RefreshToken != answers[0].RefreshToken {
			t.Fatal("different tokens")
		}
	}
	w.refresh(answers[0].RefreshToken).want(http.StatusOK)
}

func TestExpiredSessionIsOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.register("anna")
	w.exec(`UPDATE sessions SET expires_at = now()`)
	w.refresh(anna.RefreshToken).problem(http.StatusUnauthorized, "unauthenticated")
	must(t, w.api.Sweep(t.Context()))
	var left int
	must(t, w.db.QueryRow(t.Context(), `SELECT count(*) FROM sessions`).Scan(&left))
	if left != 0 {
		t.Errorf("%d sessions left by the sweep", left)
	}
}

// The database must not hold what signs in.
func TestNoTokenIsStoredAsItIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.register("anna")
	w.refresh(anna.RefreshToken).want(http.StatusOK)
	for _, table := range []string{"sessions", "identities", "signing_keys", "accounts", "changes", "revocations"} {
		rows, err := w.db.Query(t.Context(), `SELECT t::text FROM `+table+` t`)
		must(t, err)
		for rows.Next() {
			var row string
			must(t, rows.Scan(&row))
			for _, s := range []string{goodPassword, anna.RefreshToken[3:40], anna.AccessToken} {
				if contains(row, s) {
					t.Errorf("table %s holds a secret", table)
				}
			}
		}
		must(t, rows.Err())
	}
	for _, s := range []string{goodPassword, anna.RefreshToken, anna.AccessToken} {
		if contains(w.log.String(), s) {
			t.Error("the log holds a secret")
		}
	}
}
