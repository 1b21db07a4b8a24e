package api_test

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// Guards against a page that needs a CDN: many who run Mynah cannot reach one.
func TestDocsNeedNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	page := w.do(http.MethodGet, "/docs", "", nil).want(http.StatusOK)
	if found := regexp.MustCompile(`(?i)(https?:)?//[a-z0-9]`).Find(page.Body); found != nil {
		t.Errorf("the page has an address of another server: %q", found)
	}
	if strings.Contains(page.Header.Get("Content-Security-Policy"), "http") {
		t.Error("the page's policy lets it load from other servers")
	}
}

func TestUnknownAddressesAndMethodsAreProblems(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.do(http.MethodGet, "/v1/nothing", "", nil).problem(http.StatusNotFound, "not_found")
	r := w.do(http.MethodPost, "/openapi.json", "", nil).problem(http.StatusMethodNotAllowed, "invalid")
	if r.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("Allow: %q", r.Header.Get("Allow"))
	}
	w.do(http.MethodGet, "/v1/%00", "", nil).problem(http.StatusBadRequest, "invalid")
	w.do(http.MethodGet, "/v1/me?x=%ff", "", nil).problem(http.StatusBadRequest, "invalid")
}
