package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"mynah/api"
	"mynah/authhook"
)

// document is what tests read of openapi.json.
type document struct {
	OpenAPI    string `json:"openapi"`
	Paths      map[string]map[string]operation
	Components struct {
		Schemas map[string]jsonSchema
	}
}

type operation struct {
	OperationID string
	Summary     string
	Parameters  []struct {
		Name, In string
		Required bool
		Schema   jsonSchema
	}
	RequestBody *struct {
		Required bool
		Content  map[string]struct{ Schema jsonSchema }
	}
	Responses map[string]json.RawMessage
	Security  []json.RawMessage
}

type jsonSchema struct {
	Ref                  string `json:"$ref"`
	Type                 any
	Properties           map[string]jsonSchema
	Required             []string
	AdditionalProperties any
	Enum                 []any
	MaxLength            *int
	MaxItems             *int
	Pattern              string
	Items                *jsonSchema
	Minimum, Maximum     *float64
}

func (w *world) document() *document {
	var d document
	w.do(http.MethodGet, "/openapi.json", "", nil).want(http.StatusOK).into(&d)
	return &d
}

func (d *document) resolve(s jsonSchema) jsonSchema {
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		return d.Components.Schemas[name]
	}
	return s
}

func (s *jsonSchema) is(kind string) bool {
	switch t := s.Type.(type) {
	case string:
		return t == kind
	case []any:
		return slices.Contains(t, any(kind))
	}
	return false
}

// example makes a value that the schema takes.
func (d *document) example(s jsonSchema) any {
	s = d.resolve(s)
	switch {
	case len(s.Enum) > 0:
		return s.Enum[0]
	case s.is("object"):
		o := map[string]any{}
		for _, name := range s.Required {
			o[name] = d.example(s.Properties[name])
		}
		return o
	case s.is("array"):
		return []any{d.example(*s.Items)}
	case s.is("string"):
		if s.Pattern == "^[0-9]{6}$" {
			return "123456"
		}
		return "long-enough-8"
	case s.is("integer"), s.is("number"):
		return 1
	case s.is("boolean"):
		return false
	}
	return nil
}

// The document is what clients are generated from.
func TestOpenAPIDocument(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw := w.do(http.MethodGet, "/openapi.json", "", nil).want(http.StatusOK)
	d := w.document()
	if d.OpenAPI != "3.1.0" {
		t.Errorf("openapi %q", d.OpenAPI)
	}
	seen := map[string]bool{}
	for path, methods := range d.Paths {
		for method, op := range methods {
			where := method + " " + path
			if op.OperationID == "" || seen[op.OperationID] {
				t.Errorf("%s: operationId %q is missing or not unique", where, op.OperationID)
			}
			seen[op.OperationID] = true
			if op.Summary == "" || len(op.Responses) < 2 {
				t.Errorf("%s: lacks a summary, a success or errors", where)
			}
			for part := range strings.SplitSeq(path, "/") {
				if name, ok := strings.CutPrefix(part, "{"); ok && !slices.ContainsFunc(op.Parameters, func(p struct {
					Name, In string
					Required bool
					Schema   jsonSchema
				},
				) bool {
					return p.In == "path" && p.Required && p.Name == strings.TrimSuffix(name, "}")
				}) {
					t.Errorf("%s: parameter %s is not described", where, part)
				}
			}
		}
	}
	if len(seen) < 30 {
		t.Errorf("only %d operations", len(seen))
	}
	// Every schema is a schema, and every reference leads somewhere.
	whole, err := jsonschema.UnmarshalJSON(strings.NewReader(string(raw.Body)))
	must(t, err)
	c := jsonschema.NewCompiler()
	must(t, c.AddResource("mem:///openapi.json", whole))
	for name := range d.Components.Schemas {
		if _, err := c.Compile("mem:///openapi.json#/components/schemas/" + url.PathEscape(name)); err != nil {
			t.Errorf("schema %s: %v", name, err)
		}
	}
	for _, piece := range strings.Split(string(raw.Body), `"$ref":"`)[1:] {
		ref, _, _ := strings.Cut(piece, `"`)
		if name, ok := strings.CutPrefix(ref, "#/components/schemas/"); !ok || d.Components.Schemas[name].Type == nil {
			t.Errorf("$ref %s leads nowhere", ref)
		}
	}
}

// nasty are strings that break what was put together carelessly.
var nasty = []string{
	`'; DROP TABLE accounts; --`, `" OR ""="<script>alert(1)</script>`, `%00`, "a\x00b", `../../etc/passwd`, "\u202eevil",
	strings.Repeat("ä", 2000), "\\\r\nSet-Cookie: a=b", "𝕬\ufffd",
}

// leaks finds what an answer must not tell: words of the libraries below. They are whole
// words, since three letters in a row stand in one of a thousand tokens.
var leaks = regexp.MustCompile(`SQLSTATE|\b(pgx|pgxpool|pgconn|goroutine|panic)\b|json:|Go struct|/work/`)

// clean fails the test if the answer is anything but a success or a problem
// document that gives nothing away.
func (r *reply) clean() *reply {
	r.tb.Helper()
	if r.Status >= 500 || r.Status >= 300 && r.Status < 400 && r.Status != http.StatusFound {
		r.tb.Errorf("%s: status %d: %s", r.what, r.Status, r.Body)
	}
	if r.Status >= 400 && r.Header.Get("Content-Type") != "application/problem+json" {
		r.tb.Errorf("%s: %d is not a problem document: %s %s", r.what, r.Status, r.Header.Get("Content-Type"), r.Body)
	}
	if leak := leaks.Find(r.Body); leak != nil {
		r.tb.Errorf("%s: the answer tells %q: %s", r.what, leak, r.Body)
	}
	return r
}

// Every operation is given every nasty string in every place that takes one, and
// everything that breaks its schema. It must answer 2xx, 302 or a 4xx problem, and
// the tables must still be there.
func TestBadInputIsRefusedEverywhere(t *testing.T) {
	t.Parallel()
	box := &letterBox{}
	p := newProvider(t)
	w := newWorld(t, withBoxes(box), withProvider(p.URL), withWeChat(newWeChat(t).URL, "wxsecret"), func(c *api.Config) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	d := w.document()
	// Every call comes from another address and another admin, so that no limit
	// answers in place of what is tested.
	calls := 0
	do := func(method, path string, body any) *reply {
		calls++
		r := w.do(method, path, w.token(fmt.Sprintf("boss%d", calls), authhook.RoleAdmin), body,
			"X-Forwarded-For", fmt.Sprintf("10.%d.%d.1", calls>>8, calls&255))
		if r.Status == http.StatusTooManyRequests && !contains(path, "/v1/codes") {
			t.Errorf("%s %s: limited", method, path)
		}
		return r
	}
	for path, methods := range d.Paths {
		for method, op := range methods {
			method = strings.ToUpper(method)
			if op.OperationID == "deleteMe" {
				continue // has no input
			}
			filled := func(with string) string {
				out := path
				for _, param := range op.Parameters {
					if param.In == "path" {
						out = strings.ReplaceAll(out, "{"+param.Name+"}", url.PathEscape(with))
					}
				}
				return out
			}
			var body map[string]any
			var bodySchema jsonSchema
			if op.RequestBody != nil {
				bodySchema = d.resolve(op.RequestBody.Content["application/json"].Schema)
				body, _ = d.example(bodySchema).(map[string]any)
			}
			send := func(path string, body any) *reply {
				w.tb.Helper()
				return do(method, path, body).clean()
			}
			refused := func(why string, r *reply) {
				if r.Status < 400 {
					t.Errorf("%s %s took %s: %d %s", method, path, why, r.Status, r.Body)
				}
			}
			for _, s := range nasty {
				if strings.Contains(path, "{") {
					send(filled(s), asBody(body))
				}
				for _, param := range op.Parameters {
					if param.In == "query" {
						send(filled("x")+"?"+param.Name+"="+url.QueryEscape(s), asBody(body))
					}
				}
				for name, field := range bodySchema.Properties {
					if f := d.resolve(field); f.is("string") {
						send(filled("x"), with(body, name, s))
						if f.MaxLength != nil && len([]rune(s)) > *f.MaxLength {
							refused("a "+name+" that is too long", do(method, filled("x"), with(body, name, s)))
						}
					} else if f.is("object") && f.AdditionalProperties != false {
						send(filled("x"), with(body, name, map[string]any{s: s}))
					}
				}
			}
			if op.OperationID != "finishOIDC" { // its query is the provider's
				refused("an unknown query parameter", send(filled("x")+"?nonsense=1", asBody(body)))
			}
			if op.RequestBody == nil {
				continue
			}
			refused("an unknown field", send(filled("x"), with(body, "nonsense", 1)))
			refused("no object", send(filled("x"), `[]`))
			refused("null", send(filled("x"), `null`))
			refused("no JSON", send(filled("x"), `{"a":`))
			if nothing := send(filled("x"), nil); op.RequestBody.Required {
				refused("nothing", nothing)
			} else if nothing.Status == http.StatusBadRequest {
				t.Errorf("%s %s: no field is required, and it wants a body: %s", method, path, nothing.Body)
			}
			if op.RequestBody.Required == (len(bodySchema.Required) == 0) {
				t.Errorf("%s %s: the body is required: %t, of its fields: %q", method, path, op.RequestBody.Required, bodySchema.Required)
			}
			refused("a key twice", send(filled("x"), `{"nonsense":1,"nonsense":1}`))
			refused("deep nesting", send(filled("x"), strings.Repeat(`{"a":`, 5000)+"1"+strings.Repeat("}", 5000)))
			refused("a huge body", send(filled("x"), `{"a":"`+strings.Repeat("x", 70<<10)+`"}`))
			for name, field := range bodySchema.Properties {
				f := d.resolve(field)
				if slices.Contains(bodySchema.Required, name) {
					short := with(body, name, nil)
					delete(short, name)
					refused("no "+name, send(filled("x"), short))
				}
				wrong := any("text")
				if f.is("string") {
					wrong = 1
				}
				refused("a "+name+" of the wrong kind", send(filled("x"), with(body, name, wrong)))
				if f.MaxLength != nil {
					refused("a "+name+" that is too long", send(filled("x"), with(body, name, strings.Repeat("a", *f.MaxLength+1))))
				}
				if f.MaxItems != nil {
					refused("too many "+name, send(filled("x"), with(body, name, slices.Repeat([]any{d.example(*f.Items)}, *f.MaxItems+1))))
				}
				if f.Maximum != nil {
					refused("a "+name+" that is too big", send(filled("x"), with(body, name, *f.Maximum+1)))
				}
				if f.is("string") && f.MaxLength == nil && len(f.Enum) == 0 {
					t.Errorf("%s %s: %s has no limit", method, path, name)
				}
			}
		}
	}
	if calls < 1000 {
		t.Errorf("only %d calls: the document was not understood", calls)
	}
	for line := range strings.SplitSeq(w.log.String(), "\n") {
		if contains(line, "level=ERROR") {
			t.Errorf("logged: %s", line)
		}
	}
}

// asBody keeps a nil map from becoming the body "null".
func asBody(m map[string]any) any {
	if m == nil {
		return nil
	}
	return m
}

// with returns a copy of the object with one more field.
func with(m map[string]any, name string, value any) map[string]any {
	out := map[string]any{name: value}
	for k, v := range m {
		if k != name {
			out[k] = v
		}
	}
	return out
}

// Guards against ids in paths that are somebody else's.
func TestOtherPeoplesThings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna, bert := w.register("anna"), w.register("bert")
	admin := w.token("boss", authhook.RoleAdmin)
	w.do(http.MethodPost, "/v1/devices", admin, map[string]any{"id": "meter", "group": "g1"}).want(http.StatusCreated)
	w.do(http.MethodDelete, "/v1/me/sessions/"+anna.Session, bert.AccessToken, nil).problem(http.StatusNotFound, "not_found")
	w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).want(http.StatusOK)
	hidden := w.do(http.MethodGet, "/v1/devices/meter", bert.AccessToken, nil).problem(http.StatusNotFound, "not_found")
	none := w.do(http.MethodGet, "/v1/devices/none", bert.AccessToken, nil).problem(http.StatusNotFound, "not_found")
	if string(hidden.Body) != string(none.Body) {
		t.Error("a device of others and one that does not exist are told apart")
	}
	for _, call := range []string{
		"POST /v1/devices/meter/disable", "POST /v1/devices/meter/enable", "DELETE /v1/devices/meter",
	} {
		method, path, _ := strings.Cut(call, " ")
		w.do(method, path, bert.AccessToken, nil).problem(http.StatusNotFound, "not_found")
	}
	w.do(http.MethodGet, "/v1/devices", bert.AccessToken, nil).problem(http.StatusForbidden, "not_allowed")
	w.do(http.MethodGet, "/v1/devices?group=g1", bert.AccessToken, nil).problem(http.StatusForbidden, "not_allowed")
	for _, path := range []string{"/v1/admin/accounts/anna/disable", "/v1/admin/accounts/anna/enable"} {
		w.do(http.MethodPost, path, bert.AccessToken, nil).problem(http.StatusForbidden, "not_allowed")
		w.do(http.MethodPost, path, w.token("meter", authhook.RoleDevice), nil).problem(http.StatusForbidden, "not_allowed")
	}
	w.do(http.MethodPost, "/v1/admin/accounts/anna/disable", admin, nil).want(http.StatusNoContent)
	w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": "anna", "password": goodPassword}).problem(http.StatusForbidden, "not_allowed")
	w.refresh(anna.RefreshToken).problem(http.StatusUnauthorized, "unauthenticated")
	w.do(http.MethodPost, "/v1/admin/accounts/anna/enable", admin, nil).want(http.StatusNoContent)
	w.do(http.MethodGet, "/v1/me", anna.AccessToken, nil).want(http.StatusOK)
	// Every operation that is not public refuses who brings no token, or a bad one.
	for path, methods := range w.document().Paths {
		for method, op := range methods {
			if len(op.Security) == 0 {
				continue
			}
			for _, token := range []string{"", "x.y.z", anna.AccessToken + "x", anna.RefreshToken} {
				r := w.do(strings.ToUpper(method), strings.NewReplacer("{id}", "anna", "{provider}", "phone").Replace(path), token, nil)
				if r.Status != http.StatusUnauthorized || !strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "Bearer") {
					t.Errorf("%s %s without a token: %d", method, path, r.Status)
				}
			}
		}
	}
}

// Guards against limits that one address can go around, and against one address
// that shuts out others.
func TestSignInIsLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.register("anna")
	for range 12 { // the right password is no attempt at guessing
		w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": "anna", "password": goodPassword}).want(http.StatusCreated)
	}
	try := func() *reply {
		return w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": "anna", "password": "wrong password"})
	}
	for range 10 {
		try().problem(http.StatusUnauthorized, "unauthenticated")
	}
	r := try().problem(http.StatusTooManyRequests, "rate_limited")
	if after := r.Header.Get("Retry-After"); after == "" || after == "0" {
		t.Errorf("Retry-After %q", after)
	}
	if got := fmt.Sprint(w.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": "anna", "password": goodPassword}).Status); got != "429" {
		t.Errorf("the right password after the limit: %s", got)
	}
	// By address, whoever is tried.
	few := newWorld(t, func(c *api.Config) { c.AddressLimits = 0.01 })
	for i, status := range []int{http.StatusUnauthorized, http.StatusUnauthorized, http.StatusUnauthorized, http.StatusTooManyRequests} {
		few.do(http.MethodPost, "/v1/sessions/password", "", map[string]any{"id": fmt.Sprint("nobody", i), "password": "wrong password"}).want(status)
	}
}
