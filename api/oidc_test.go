package api_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"mynah/api"
	"mynah/people"
)

// provider is a small OpenID Connect provider: discovery, JWKS, an authorization
// endpoint that lets everyone in, and a token endpoint that checks the client, the
// redirect address, the code's one use and PKCE.
type provider struct {
	*httptest.Server
	key *rsa.PrivateKey

	mu     sync.Mutex
	codes  map[string]url.Values // code to the authorization request
	mangle func(claims jwt.MapClaims)
	sign   *rsa.PrivateKey // another key, or nil
	answer func(w http.ResponseWriter) bool
}

func newProvider(tb testing.TB) *provider {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(tb, err)
	p := &provider{key: key, codes: map[string]url.Values{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token",
			"jwks_uri": p.URL + "/keys", "response_types_supported": []string{"code"},
			"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"RS256"},
		})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{map[string]string{
			"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "k1",
			"n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()),
			"e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes()),
		}}})
	})
	mux.HandleFunc("GET /authorize", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Get("response_type") != "code" || q.Get("client_id") != "mynah" || !strings.Contains(q.Get("scope"), "openid") ||
			q.Get("code_challenge_method") != "S256" || q.Get("nonce") == "" || q.Get("state") == "" {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		code := rand.Text()
		p.mu.Lock()
		p.codes[code] = q
		p.mu.Unlock()
		back := q.Get("redirect_uri") + "?" + url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {p.URL}}.Encode()
		http.Redirect(w, r, back, http.StatusFound) //nolint:gosec // G710: that is what the endpoint does
	})
	mux.HandleFunc("POST /token", p.token)
	p.Server = httptest.NewServer(mux)
	tb.Cleanup(p.Close)
	return p
}

func (p *provider) token(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	refuse := func(code string) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = fmt.Fprintf(w, `{"error":%q}`, code)
	}
	if p.answer != nil && p.answer(w) {
		return
	}
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	if id != "mynah" || secret != "client secret" {
		refuse("invalid_client")
		return
	}
	asked, ok := p.codes[r.PostFormValue("code")]
	delete(p.codes, r.PostFormValue("code"))
	sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if !ok || r.PostFormValue("grant_type") != "authorization_code" || r.PostFormValue("redirect_uri") != asked.Get("redirect_uri") ||
		base64.RawURLEncoding.EncodeToString(sum[:]) != asked.Get("code_challenge") {
		refuse("invalid_grant")
		return
	}
	claims := jwt.MapClaims{
		"iss": p.URL, "sub": "subject-1", "aud": "mynah", "nonce": asked.Get("nonce"), "name": "Anna\u202e \u0007Example",
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
	}
	if p.mangle != nil {
		p.mangle(claims)
	}
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, claims)
	token.Header["kid"] = "k1"
	key := p.key
	if p.sign != nil {
		key = p.sign
	}
	signed, err := token.SignedString(key)
	if err != nil {
		refuse("server_error")
		return
	}
	_, _ = fmt.Fprintf(w, `{"access_token":"at","token_type":"Bearer","expires_in":60,"id_token":%q}`, signed)
}

// browser follows a sign-in from its start to the redirect address, as a browser
// would, and returns that address. change may alter the callback's address; if it
// returns false the browser stops there and returns it.
func (w *world) browser(start string, change func(*url.URL) bool) *url.URL {
	w.tb.Helper()
	jar := ""
	next := w.url + start
	for range 6 {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, next, http.NoBody)
		must(w.tb, err)
		if jar != "" && strings.HasPrefix(next, w.url) {
			req.Header.Set("Cookie", jar)
		}
		resp, err := w.http.Do(req)
		must(w.tb, err)
		must(w.tb, resp.Body.Close())
		for _, c := range resp.Cookies() {
			if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode {
				w.tb.Errorf("cookie %s is not protected", c.Name)
			}
			jar = c.Name + "=" + c.Value
		}
		where, err := resp.Location()
		if err != nil {
			w.tb.Fatalf("GET %s: status %d, no redirect", next, resp.StatusCode)
		}
		if where.Host == "app.example.com" {
			return where
		}
		if strings.HasSuffix(where.Path, "/callback") && change != nil {
			if !change(where) {
				return where
			}
		}
		next = where.String()
	}
	w.tb.Fatal("redirected for ever")
	return nil
}

func withProvider(issuer string) func(*api.Config) {
	return func(c *api.Config) {
		c.People.OIDC = []people.OIDC{{Name: "corp", Issuer: issuer, ClientID: "mynah", Secret: "client secret"}}
		c.People.Redirects = []string{"https://app.example.com/signed-in"}
	}
}

const startOIDC = "/v1/oidc/corp/start?redirect=https%3A%2F%2Fapp.example.com%2Fsigned-in%3Fx%3D1"

func (w *world) ticket(ticket, verifier string) *reply {
	body := map[string]any{"ticket": ticket}
	if verifier != "" {
		body["verifier"] = verifier
	}
	return w.do(http.MethodPost, "/v1/sessions/ticket", "", body)
}

func TestSignInWithOIDC(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	w := newWorld(t, withProvider(p.URL))
	back := w.browser(startOIDC, nil)
	if back.Query().Get("x") != "1" || back.Query().Get("error") != "" {
		t.Fatalf("sent back to %s", back)
	}
	var first, second person
	w.ticket(back.Query().Get("ticket"), "").want(http.StatusCreated).into(&first)
	w.ticket(back.Query().Get("ticket"), "").problem(http.StatusUnauthorized, "unauthenticated") // once
	if got := w.do(http.MethodGet, "/v1/me", first.AccessToken, nil).get("name"); !first.Created || strings.ContainsAny(got, "\a") {
		t.Errorf("made: %+v, called %q", first, got)
	}
	// With a challenge only its verifier opens the ticket.
	verifier := "a verifier of the app's own, long enough"
	sum := sha256.Sum256([]byte(verifier))
	start := startOIDC + "&challenge=" + base64.RawURLEncoding.EncodeToString(sum[:])
	w.ticket(w.browser(start, nil).Query().Get("ticket"), "another").problem(http.StatusUnauthorized, "unauthenticated")
	w.ticket(w.browser(start, nil).Query().Get("ticket"), verifier).want(http.StatusCreated).into(&second)
	if second.Created || second.Account != first.Account {
		t.Errorf("another account: %+v", second)
	}
	// Linking to an account that signs in otherwise.
	anna := w.register("anna")
	link := func() *reply {
		ticket := w.browser(startOIDC, nil).Query().Get("ticket")
		return w.do(http.MethodPost, "/v1/me/identities/ticket", anna.AccessToken, map[string]any{"ticket": ticket})
	}
	link().problem(http.StatusConflict, "conflict")
	p.mangle = func(c jwt.MapClaims) { c["sub"] = "subject-2" }
	link().want(http.StatusNoContent)
	w.exec(`UPDATE tickets SET expires_at = now()`)
	ticket := w.browser(startOIDC, nil).Query().Get("ticket")
	w.exec(`UPDATE tickets SET expires_at = now()`)
	w.ticket(ticket, "").problem(http.StatusUnauthorized, "unauthenticated")
}

// Each row is an ID token or an answer that must not sign anybody in.
func TestOIDCFailures(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	w := newWorld(t, withProvider(p.URL))
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	answer := func(status int, text string) func(http.ResponseWriter) bool {
		return func(w http.ResponseWriter) bool { w.WriteHeader(status); _, _ = w.Write([]byte(text)); return true }
	}
	for name, set := range map[string]func(){
		"wrong nonce":       func() { p.mangle = func(c jwt.MapClaims) { c["nonce"] = "another" } },
		"no nonce":          func() { p.mangle = func(c jwt.MapClaims) { delete(c, "nonce") } },
		"wrong audience":    func() { p.mangle = func(c jwt.MapClaims) { c["aud"] = "another" } },
		"two audiences":     func() { p.mangle = func(c jwt.MapClaims) { c["aud"] = []string{"mynah", "another"} } },
		"issued to another": func() { p.mangle = func(c jwt.MapClaims) { c["azp"] = "another" } },
		"wrong issuer":      func() { p.mangle = func(c jwt.MapClaims) { c["iss"] = "https://evil.example" } },
		"expired":           func() { p.mangle = func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-time.Minute).Unix() } },
		"no subject":        func() { p.mangle = func(c jwt.MapClaims) { c["sub"] = "" } },
		"U+0000 in subject": func() { p.mangle = func(c jwt.MapClaims) { c["sub"] = "a\x00b" } },
		"wrong key":         func() { p.sign = other },
		"expired code":      func() { p.answer = answer(http.StatusBadRequest, `{"error":"invalid_grant"}`) },
		"no id_token":       func() { p.answer = answer(http.StatusOK, `{"access_token":"at","token_type":"Bearer"}`) },
		"not JSON":          func() { p.answer = answer(http.StatusOK, `<html>`) },
		"failing":           func() { p.answer = answer(http.StatusInternalServerError, `at=secret-in-answer`) },
	} {
		p.mu.Lock()
		p.mangle, p.sign, p.answer = nil, nil, nil
		set()
		p.mu.Unlock()
		back := w.browser(startOIDC, nil)
		if back.Query().Get("error") != "server_error" || back.Query().Get("ticket") != "" {
			t.Errorf("%s: sent back to %s", name, back)
		}
	}
	var people int
	must(t, w.db.QueryRow(t.Context(), `SELECT count(*) FROM accounts`).Scan(&people))
	if people != 0 {
		t.Errorf("%d accounts made", people)
	}
	for _, s := range []string{"client secret", "secret-in-answer"} {
		if contains(w.log.String(), s) {
			t.Errorf("the log holds %q", s)
		}
	}
}

func TestOIDCStateIsForOneUseInOneBrowser(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	w := newWorld(t, withProvider(p.URL))
	// The person refuses at the provider.
	back := w.browser(startOIDC, func(u *url.URL) bool {
		q := u.Query()
		q.Del("code")
		q.Set("error", "access_denied")
		u.RawQuery = q.Encode()
		return true
	})
	if back.Query().Get("error") != "access_denied" {
		t.Errorf("sent back to %s", back)
	}
	// A callback in a browser in which nothing was begun: an attacker has sent the
	// person there, to be signed in as the attacker.
	stop := func(*url.URL) bool { return false }
	lured := w.browser(startOIDC, stop)
	w.do(http.MethodGet, lured.RequestURI(), "", nil).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodGet, lured.RequestURI(), "", nil, "Cookie", "mynah_oidc=another").problem(http.StatusUnauthorized, "unauthenticated")
	// Twice in the same browser.
	cookie := "mynah_oidc=" + lured.Query().Get("state")
	w.do(http.MethodGet, lured.RequestURI(), "", nil, "Cookie", cookie).want(http.StatusFound)
	w.do(http.MethodGet, lured.RequestURI(), "", nil, "Cookie", cookie).problem(http.StatusUnauthorized, "unauthenticated")
	// Too late.
	late := w.browser(startOIDC, stop)
	w.exec(`UPDATE oidc_flows SET expires_at = now()`)
	w.do(http.MethodGet, late.RequestURI(), "", nil, "Cookie", "mynah_oidc="+late.Query().Get("state")).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodGet, "/v1/oidc/corp/callback", "", nil).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodGet, "/v1/oidc/other/start?redirect=https://app.example.com/signed-in", "", nil).problem(http.StatusNotFound, "not_found")
	for _, redirect := range []string{
		"https://evil.example/", "https://app.example.com.evil.example/signed-in", "https://app.example.com/other", "http://app.example.com/signed-in",
		"https://app.example.com/signed-inx", "https://app.example.com/signed-in/../other", "https://user@app.example.com/signed-in", "javascript:alert(1)", "//app.example.com/signed-in", `https://app.example.com\@evil.example/signed-in`, "",
	} {
		w.do(http.MethodGet, "/v1/oidc/corp/start?redirect="+url.QueryEscape(redirect), "", nil).problem(http.StatusUnprocessableEntity, "invalid")
	}
}

// Guards against a server that cannot start, or hangs, while a provider is away.
func TestOIDCProviderAway(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	p.Close()
	w := newWorld(t, withProvider(p.URL))
	w.do(http.MethodGet, startOIDC, "", nil).problem(http.StatusServiceUnavailable, "unavailable")
	w.do(http.MethodGet, "/v1/sign-in", "", nil).want(http.StatusOK)
}
