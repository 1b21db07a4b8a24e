package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"mynah/api"
	"mynah/internal/waitfor"
	"mynah/people"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

// letterBox is a Sender that keeps what it is given.
type letterBox struct {
	mu    sync.Mutex
	codes []people.Code
}

func (l *letterBox) Send(_ context.Context, c people.Code) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.codes = append(l.codes, c)
	return nil
}

func (l *letterBox) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.codes)
}

// nth waits for the nth code and returns it.
func (l *letterBox) nth(tb testing.TB, n int) people.Code {
	tb.Helper()
	waitfor.MustHold(tb, "a code is sent", func() bool { return l.len() >= n })
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.codes[n-1]
}

func withBoxes(box *letterBox) func(*api.Config) {
	return func(c *api.Config) { c.People.SMS, c.People.Mail = box, box }
}

func (w *world) askCode(channel, to, purpose string) string {
	w.tb.Helper()
	return w.do(http.MethodPost, "/v1/codes", "", map[string]any{"channel": channel, "to": to, "purpose": purpose}).
		want(http.StatusAccepted).get("challenge")
}

func (w *world) signInCode(challenge, code string) *reply {
	w.tb.Helper()
	return w.do(http.MethodPost, "/v1/sessions/code", "", map[string]any{"challenge": challenge, "code": code})
}

// wrong returns six digits that are not the code's.
func wrong(code string) string {
	last := code[5]
	return code[:5] + string('0'+(last-'0'+1)%10)
}

func TestSignInByCode(t *testing.T) {
	t.Parallel()
	box := &letterBox{}
	w := newWorld(t, withBoxes(box))
	var first, second person
	challenge := w.askCode("phone", "+86 138-0013-8000", "signin")
	code := box.nth(t, 1)
	if code.To != "+8613800138000" || len(code.Digits) != 6 {
		t.Fatalf("sent: %+v", code)
	}
	w.signInCode(challenge, wrong(code.Digits)).problem(http.StatusUnauthorized, "unauthenticated")
	w.signInCode(challenge, code.Digits).want(http.StatusCreated).into(&first)
	if !first.Created {
		t.Error("no account made")
	}
	// A code is for one use.
	w.signInCode(challenge, code.Digits).problem(http.StatusUnauthorized, "unauthenticated")
	challenge = w.askCode("phone", "008613800138000", "signin")
	w.signInCode(challenge, box.nth(t, 2).Digits).want(http.StatusCreated).into(&second)
	if second.Created || second.Account != first.Account {
		t.Errorf("the same number is another account: %+v", second)
	}
	if contains(w.log.String(), code.Digits) {
		t.Error("the log holds a code")
	}
}

// Guards against codes that can be guessed: five tries for a challenge, however
// they are made.
func TestGuessingCodes(t *testing.T) {
	t.Parallel()
	box := &letterBox{}
	w := newWorld(t, withBoxes(box))
	challenge := w.askCode("mail", "anna@example.com", "signin")
	code := box.nth(t, 1).Digits
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() { w.signInCode(challenge, wrong(code)).problem(http.StatusUnauthorized, "unauthenticated") })
	}
	all.Wait()
	w.signInCode(challenge, code).problem(http.StatusUnauthorized, "unauthenticated")

	challenge = w.askCode("mail", "anna@example.com", "signin")
	code = box.nth(t, 2).Digits
	w.exec(`UPDATE codes SET expires_at = now()`)
	w.signInCode(challenge, code).problem(http.StatusUnauthorized, "unauthenticated")

	// For another purpose it does not fit.
	challenge = w.askCode("mail", "anna@example.com", "link")
	w.signInCode(challenge, box.nth(t, 3).Digits).problem(http.StatusUnauthorized, "unauthenticated")
	w.signInCode("another challenge", box.nth(t, 3).Digits).problem(http.StatusUnauthorized, "unauthenticated")

	w.askCode("mail", "anna@example.com", "signin")
	w.askCode("mail", "Anna@Example.com", "signin")
	r := w.do(http.MethodPost, "/v1/codes", "", map[string]any{"channel": "mail", "to": "anna@example.com", "purpose": "signin"}).
		problem(http.StatusTooManyRequests, "rate_limited")
	if r.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	// Others are not concerned.
	w.askCode("mail", "bert@example.com", "signin")
}

// Guards against one code being used twice at the same moment.
func TestOneCodeOpensOneSession(t *testing.T) {
	t.Parallel()
	box := &letterBox{}
	w := newWorld(t, withBoxes(box))
	challenge := w.askCode("phone", "+8613800138000", "signin")
	code := box.nth(t, 1).Digits
	var opened, refused sync.Map
	var all sync.WaitGroup
	for i := range 5 {
		all.Go(func() {
			if r := w.signInCode(challenge, code); r.Status == http.StatusCreated {
				opened.Store(i, true)
			} else {
				r.problem(http.StatusUnauthorized, "unauthenticated")
				refused.Store(i, true)
			}
		})
	}
	all.Wait()
	n := 0
	opened.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d sessions opened with one code", n)
	}
}

// shape is an answer without what is random in it.
func shape(r *reply) string {
	var v map[string]any
	if err := json.Unmarshal(r.Body, &v); err != nil {
		return fmt.Sprint(r.Status, string(r.Body))
	}
	for _, name := range []string{"challenge", "access_token", "refresh_token"} {
		if s, ok := v[name].(string); ok {
			v[name] = len(s)
		}
	}
	text, _ := json.Marshal(v)
	headers := ""
	for name := range r.Header {
		if name != "Date" && name != "X-Request-Id" && name != "Content-Length" {
			headers += name + "=" + r.Header.Get(name) + ";"
		}
	}
	return fmt.Sprint(r.Status, len(headers), string(text))
}

// Guards against an answer that tells whether a number, an address or an id has
// an account.
func TestNoAnswerTellsWhetherAnAccountExists(t *testing.T) {
	t.Parallel()
	box := &letterBox{}
	w := newWorld(t, withBoxes(box))
	challenge := w.askCode("phone", "+8613800138000", "signin")
	w.signInCode(challenge, box.nth(t, 1).Digits).want(http.StatusCreated)
	w.askCode("phone", "+8613900139000", "signin") // as many as the other
	w.register("anna")
	closed := newWorld(t, withBoxes(&letterBox{}), func(c *api.Config) { c.People.Registration = people.RegisterClosed })
	same := func(what string, known, unknown *reply) {
		t.Helper()
		if shape(known) != shape(unknown) {
			t.Errorf("%s tells:\n%s\n%s", what, shape(known), shape(unknown))
		}
	}
	ask := func(w *world, channel, to, purpose string) *reply {
		return w.do(http.MethodPost, "/v1/codes", "", map[string]any{"channel": channel, "to": to, "purpose": purpose})
	}
	for _, purpose := range []string{"signin", "reset", "link"} {
		known, unknown := ask(w, "phone", "+8613800138000", purpose), ask(w, "phone", "+8613900139000", purpose)
		same("asking for a code to "+purpose, known, unknown)
		if purpose == "reset" {
			body := func(r *reply) map[string]any {
				return map[string]any{"challenge": r.get("challenge"), "code": "000000", "password": "another good one"}
			}
			same("a wrong code", w.do(http.MethodPost, "/v1/password/reset", "", body(known)), w.do(http.MethodPost, "/v1/password/reset", "", body(unknown)))
		}
	}
	for range 3 {
		same("the limit", ask(w, "phone", "+8613800138000", "reset"), ask(w, "phone", "+8613900139000", "reset"))
	}
	signIn := func(id string) *reply {
		return w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": id, "password": "not the password"})
	}
	same("a wrong password", signIn("anna"), signIn("nobody"))
	// With registration closed there is nobody to send to; that must not show.
	r := ask(closed, "mail", "a@example.com", "signin").want(http.StatusAccepted)
	if len(r.get("challenge")) != len(challenge) {
		t.Error("another challenge for nobody")
	}
	closed.do(http.MethodPost, "/v1/accounts", "", map[string]any{"password": goodPassword}).problem(http.StatusForbidden, "not_allowed")

	// An id that cannot be had is refused with the same words, whyever.
	w.exec(`UPDATE accounts SET deleted_at = now() WHERE id = 'anna'`)
	gone := w.do(http.MethodPost, "/v1/accounts", "", map[string]any{"id": "anna", "password": goodPassword}).problem(http.StatusConflict, "conflict")
	reserved := w.do(http.MethodPost, "/v1/accounts", "", map[string]any{"id": "System", "password": goodPassword})
	same("a deleted or reserved id", gone, reserved)
}

// Guards against sign-ins that do less work for an account that does not exist:
// both hash a password.
func TestUnknownAccountCostsAHash(t *testing.T) {
	w := newWorld(t)
	w.register("anna")
	known, unknown := 1e9, 1e9
	for range 8 { // by turns: the machine may be slow for a while
		for id, best := range map[string]*float64{"anna": &known, "nobody": &unknown} {
			*best = min(*best, timed(func() {
				w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": id, "password": "not the password"}).
					problem(http.StatusUnauthorized, "unauthenticated")
			}))
		}
	}
	// Without the hash it would be 1 to 20 or more; a busy machine makes 1 to 2.
	if unknown < known/4 || known < unknown/4 {
		t.Errorf("best of 8: %.1f ms for an account, %.1f ms for none", known, unknown)
	}
}

func TestPasswordReset(t *testing.T) {
	t.Parallel()
	box := &letterBox{}
	w := newWorld(t, withBoxes(box))
	anna := w.register("anna")
	challenge := w.askCode("mail", "anna@example.com", "link")
	w.do(http.MethodPost, "/v1/me/identities/code", anna.AccessToken, map[string]any{"challenge": challenge, "code": box.nth(t, 1).Digits}).want(http.StatusNoContent)
	challenge = w.askCode("mail", "ANNA@example.com", "reset")
	body := map[string]any{"challenge": challenge, "code": box.nth(t, 2).Digits, "password": "a new good password"}
	w.do(http.MethodPost, "/v1/password/reset", "", body).want(http.StatusNoContent)
	// Whoever knew the old one is out.
	w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": "anna", "password": goodPassword}).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": "anna", "password": "a new good password"}).want(http.StatusCreated)
	w.do(http.MethodPost, "/v1/password/reset", "", body).problem(http.StatusUnauthorized, "unauthenticated")
}

func TestLinkAndUnlink(t *testing.T) {
	t.Parallel()
	box := &letterBox{}
	w := newWorld(t, withBoxes(box))
	anna, bert := w.register("anna"), w.register("bert")
	link := func(p person, to string, nth int) *reply {
		challenge := w.askCode("phone", to, "link")
		return w.do(http.MethodPost, "/v1/me/identities/code", p.AccessToken, map[string]any{"challenge": challenge, "code": box.nth(t, nth).Digits})
	}
	link(anna, "+8613800138000", 1).want(http.StatusNoContent)
	link(bert, "+8613800138000", 2).problem(http.StatusConflict, "conflict")
	link(anna, "+8613900139000", 3).want(http.StatusNoContent) // in place of the old number
	link(bert, "+8613800138000", 4).want(http.StatusNoContent)
	r := w.do(http.MethodGet, "/v1/me/identities", anna.AccessToken, nil).want(http.StatusOK)
	if !contains(string(r.Body), "+8613900139000") || contains(string(r.Body), "+8613800138000") {
		t.Errorf("identities: %s", r.Body)
	}
	// Being found by the number is for the person to allow.
	find := func() *reply {
		return w.do(http.MethodPost, "/v1/people/find", bert.AccessToken, map[string]any{"by": "phone", "key": "+86 139 0013 9000"})
	}
	find().problem(http.StatusNotFound, "not_found")
	w.do(http.MethodPatch, "/v1/me", anna.AccessToken, map[string]any{"settings": map[string]any{"find_by_phone": true}}).want(http.StatusOK)
	if got := find().want(http.StatusOK).get("id"); got != "anna" {
		t.Errorf("found %q", got)
	}
	w.do(http.MethodDelete, "/v1/me/identities/password", anna.AccessToken, nil).want(http.StatusNoContent)
	w.do(http.MethodDelete, "/v1/me/identities/phone", anna.AccessToken, nil).problem(http.StatusConflict, "conflict")
	w.do(http.MethodDelete, "/v1/me/identities/mail", anna.AccessToken, nil).problem(http.StatusNotFound, "not_found")
	// With a stolen access token nothing is linked, removed or deleted.
	w.exec(`UPDATE sessions SET created_at = now() - interval '11 minutes'`)
	w.do(http.MethodDelete, "/v1/me/identities/phone", bert.AccessToken, nil).problem(http.StatusForbidden, "stale_sign_in")
	w.do(http.MethodDelete, "/v1/me", bert.AccessToken, nil).problem(http.StatusForbidden, "stale_sign_in")
	w.do(http.MethodPut, "/v1/me/password", anna.AccessToken, map[string]any{"new": "a first good one"}).problem(http.StatusForbidden, "stale_sign_in")
	w.do(http.MethodPut, "/v1/me/password", bert.AccessToken, map[string]any{"new": "a new good one", "current": "wrong"}).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodPut, "/v1/me/password", bert.AccessToken, map[string]any{"new": "a new good one", "current": goodPassword}).want(http.StatusNoContent)
	w.do(http.MethodGet, "/v1/me", bert.AccessToken, nil).want(http.StatusOK) // the device that changed it stays
}

func TestDeletedAccount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna := w.register("anna")
	w.do(http.MethodPatch, "/v1/me", anna.AccessToken, map[string]any{"name": "Anna"}).want(http.StatusOK)
	w.do(http.MethodDelete, "/v1/me", anna.AccessToken, nil).want(http.StatusNoContent)
	w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": "anna", "password": goodPassword}).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodPost, "/v1/accounts", "", map[string]any{"id": "anna", "password": goodPassword}).problem(http.StatusConflict, "conflict")
	// A token that another issuer signs for the id does not bring it back.
	w.do(http.MethodGet, "/v1/me", w.token("anna", ""), nil).problem(http.StatusUnauthorized, "unauthenticated")
	bert := w.register("bert")
	if r := w.do(http.MethodGet, "/v1/people/anna", bert.AccessToken, nil).want(http.StatusOK); contains(string(r.Body), "Anna") {
		t.Errorf("the name is still there: %s", r.Body)
	}
}
