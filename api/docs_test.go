package api_test

import (
	"net/http"
	"net/url"
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

// Guards against a description of HTTP alone, when what people come for goes by MQTT: the
// pages lead to the protocol, to AsyncAPI and to the schemas, and every link of theirs leads
// somewhere on this server.
func TestDocsLeadToTheProtocol(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	link := regexp.MustCompile(`(?:href="|\$ref: )([^"\s#'][^"\s]*)`)
	kinds := map[string]string{}
	todo := []string{"/docs", "/docs/protocol.md"}
	for len(todo) > 0 {
		path := todo[0]
		todo = todo[1:]
		if _, seen := kinds[path]; seen {
			continue
		}
		page := w.do(http.MethodGet, path, "", nil).want(http.StatusOK)
		kinds[path], _, _ = strings.Cut(page.Header.Get("Content-Type"), ";")
		base, err := url.Parse(path)
		must(t, err)
		for _, found := range link.FindAllSubmatch(page.Body, -1) {
			target, err := base.Parse(string(found[1]))
			must(t, err)
			if target.Host != "" {
				t.Errorf("%s leads to another server: %s", path, target)
				continue
			}
			todo = append(todo, target.Path)
		}
	}
	for path, kind := range map[string]string{
		"/docs": "text/html", "/docs/protocol": "text/html", "/docs/protocol.md": "text/markdown", "/openapi.json": "application/openapi+json",
		"/asyncapi.yaml": "application/yaml", "/docs/schema/wire": "text/html", "/docs/schema/wire/asyncapi.yaml": "application/yaml",
		"/docs/schema/wire/message.schema.json": "application/schema+json", "/docs/schema/wire/error.schema.json": "application/schema+json",
		"/docs/schema/wire/presence.schema.json": "application/schema+json",
	} {
		if kinds[path] != kind {
			t.Errorf("%s is %q, want %q, or no link leads there", path, kinds[path], kind)
		}
	}
	if page := string(w.do(http.MethodGet, "/docs", "", nil).Body); !contains(page, `id="mqtt"`) || !contains(page, "group/+") {
		t.Error("the page has no section about MQTT")
	}
	protocol := string(w.do(http.MethodGet, "/docs/protocol", "", nil).Body)
	for _, part := range []string{`<h2 id="topics">`, "<table>", "<code>group/&lt;id&gt;</code>", `href="/docs"`} {
		if !contains(protocol, part) {
			t.Errorf("the rendered protocol has no %s", part)
		}
	}
	w.do(http.MethodGet, "/docs/nosuch", "", nil).problem(http.StatusNotFound, "not_found")
}
