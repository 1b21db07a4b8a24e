package api_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"mynah/api"
	"mynah/people"
)

// newWeChat is a stand-in for api.weixin.qq.com that speaks code2session as it is
// documented: GET, errors with status 200, JSON as text/plain.
func newWeChat(tb testing.TB) *httptest.Server {
	tb.Helper()
	hang := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		q := r.URL.Query()
		say := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
		switch code := q.Get("js_code"); {
		case r.Method != http.MethodGet || r.URL.Path != "/sns/jscode2session" || q.Get("grant_type") != "authorization_code":
			w.WriteHeader(http.StatusNotFound)
		case q.Get("appid") != "wx123":
			say(`{"errcode":40013,"errmsg":"invalid appid, rid: 1"}`)
		case q.Get("secret") != "wxsecret":
			say(`{"errcode":40125,"errmsg":"invalid appsecret, rid: 1"}`)
		case code == "good":
			say(`{"session_key":"c2Vzc2lvbl9rZXk=","openid":"oAnna"}`)
		case code == "good-union":
			say(`{"session_key":"c2Vzc2lvbl9rZXk=","openid":"oAnna","unionid":"uAnna"}`)
		case code == "other-app":
			say(`{"session_key":"c2Vzc2lvbl9rZXk=","openid":"oAnnaElsewhere","unionid":"uAnna"}`)
		case code == "bert":
			say(`{"session_key":"c2Vzc2lvbl9rZXk=","openid":"oBert"}`)
		case code == "invalid":
			say(`{"errcode":40029,"errmsg":"invalid code, rid: 1"}`)
		case code == "often":
			say(`{"errcode":45011,"errmsg":"api minute-quota reach limit, rid: 1"}`)
		case code == "blocked":
			say(`{"errcode":40226,"errmsg":"code blocked, rid: 1"}`)
		case code == "busy":
			say(`{"errcode":-1,"errmsg":"system error, rid: 1"}`)
		case code == "empty":
			say(`{}`)
		case code == "nul":
			say(`{"openid":"o\u0000Anna"}`)
		case code == "html":
			say(`<html>gateway</html>`)
		case code == "gateway":
			w.WriteHeader(http.StatusBadGateway)
		case code == "redirect":
			http.Redirect(w, r, "http://127.0.0.1:1/"+q.Get("secret"), http.StatusFound) //nolint:gosec // G710: a trap
		case code == "hang":
			select {
			case <-hang:
			case <-r.Context().Done():
			}
		default:
			say(`{"errcode":40029,"errmsg":"invalid code, rid: 1"}`)
		}
	}))
	tb.Cleanup(func() { close(hang); s.Close() })
	return s
}

func withWeChat(base, secret string) func(*api.Config) {
	return func(c *api.Config) {
		c.People.WeChat = people.WeChat{AppID: "wx123", Secret: secret, BaseURL: base}
	}
}

func TestSignInWithWeChat(t *testing.T) {
	t.Parallel()
	base := newWeChat(t).URL
	w := newWorld(t, withWeChat(base, "wxsecret"))
	in := func(code string) *reply {
		return w.do(http.MethodPost, "/v1/sessions/wechat", "", map[string]any{"code": code})
	}
	var first, again, union, elsewhere person
	in("good").want(http.StatusCreated).into(&first)
	in("good").want(http.StatusCreated).into(&again)
	if !first.Created || again.Created || again.Account != first.Account {
		t.Fatalf("first %+v, again %+v", first, again)
	}
	// The mini-program is bound to an open platform later: the same person, who
	// is then known from the platform's other programs, too.
	in("good-union").want(http.StatusCreated).into(&union)
	in("other-app").want(http.StatusCreated).into(&elsewhere)
	if union.Account != first.Account || elsewhere.Account != first.Account {
		t.Errorf("one person has several accounts: %s, %s, %s", first.Account, union.Account, elsewhere.Account)
	}
	for code, want := range map[string]struct {
		status int
		code   string
	}{
		"invalid":    {http.StatusUnauthorized, "unauthenticated"},
		"often":      {http.StatusTooManyRequests, "rate_limited"},
		"blocked":    {http.StatusForbidden, "not_allowed"},
		"busy":       {http.StatusServiceUnavailable, "unavailable"},
		"empty":      {http.StatusBadGateway, "upstream_refused"},
		"nul":        {http.StatusBadGateway, "upstream_refused"},
		"html":       {http.StatusServiceUnavailable, "unavailable"},
		"gateway":    {http.StatusServiceUnavailable, "unavailable"},
		"redirect":   {http.StatusServiceUnavailable, "unavailable"},
		"a&secret=x": {http.StatusUnauthorized, "unauthenticated"}, // it is one value, whatever is in it
	} {
		in(code).problem(want.status, want.code)
	}
	// Who does not answer is waited for as long as a request may take. The others have more.
	hurried := newWorld(t, withWeChat(base, "wxsecret"), func(c *api.Config) { c.Timeout = time.Second })
	hurried.do(http.MethodPost, "/v1/sessions/wechat", "", map[string]any{"code": "hang"}).problem(http.StatusServiceUnavailable, "unavailable")
	// Linking: to another account only if it is free.
	anna := w.register("anna")
	link := func(code string) *reply {
		return w.do(http.MethodPost, "/v1/me/identities/wechat", anna.AccessToken, map[string]any{"code": code})
	}
	link("good").problem(http.StatusConflict, "conflict")
	link("bert").want(http.StatusNoContent)
	var bert person
	in("bert").want(http.StatusCreated).into(&bert)
	if bert.Account != "anna" {
		t.Errorf("signed in as %s", bert.Account)
	}
	if contains(w.log.String(), "wxsecret") {
		t.Error("the log holds the app's secret")
	}
}

// A server with a wrong secret says so to its operator, not to people.
func TestWeChatRefusesTheServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withWeChat(newWeChat(t).URL, "wrong"))
	w.do(http.MethodPost, "/v1/sessions/wechat", "", map[string]any{"code": "good"}).problem(http.StatusBadGateway, "upstream_refused")
	if !contains(w.log.String(), "40125") {
		t.Error("the log does not say why")
	}
	off := newWorld(t)
	off.do(http.MethodPost, "/v1/sessions/wechat", "", map[string]any{"code": "good"}).problem(http.StatusUnprocessableEntity, "invalid")
}
