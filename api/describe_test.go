package api_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// described is what a reader of the document learns of an operation.
type described struct {
	OperationID, Summary, Description string
	RequestBody                       *struct{ Content map[string]exampled }
	Responses                         map[string]struct {
		Description string
		Codes       []string `json:"x-codes"`
		Content     map[string]exampled
	}
}

type exampled struct {
	Schema  json.RawMessage
	Example json.RawMessage
}

// Guards against operations that one has to guess: each has a description, an example of
// what is sent and of what is answered, and its problems. The examples are what the schemas
// take.
func TestOperationsAreDescribed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw := w.do(http.MethodGet, "/openapi.json", "", nil).want(http.StatusOK)
	var document struct {
		Paths map[string]map[string]described
	}
	raw.into(&document)
	whole, err := jsonschema.UnmarshalJSON(strings.NewReader(string(raw.Body)))
	must(t, err)
	compiler := jsonschema.NewCompiler()
	must(t, compiler.AddResource("mem:///openapi.json", whole))
	count := 0
	for path, methods := range document.Paths {
		for method, op := range methods {
			count++
			where := strings.ToUpper(method) + " " + path
			fits := func(pointer, media string, e exampled) {
				if len(e.Example) == 0 {
					t.Errorf("%s: %s %s has no example", where, pointer, media)
					return
				}
				pointer = "mem:///openapi.json#/paths/" + url.PathEscape(strings.NewReplacer("~", "~0", "/", "~1").Replace(path)) + "/" + method + "/" +
					pointer + "/content/" + url.PathEscape(strings.ReplaceAll(media, "/", "~1")) + "/schema"
				schema, err := compiler.Compile(pointer)
				if err != nil {
					t.Errorf("%s: %v", where, err)
					return
				}
				value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(e.Example)))
				must(t, err)
				if err := schema.Validate(value); err != nil {
					t.Errorf("%s: the example is not what the schema takes: %v", pointer, err)
				}
			}
			if len(op.Description) < 20 || op.Description == op.Summary {
				t.Errorf("%s: description %q", where, op.Description)
			}
			if op.RequestBody != nil {
				for media, e := range op.RequestBody.Content {
					fits("requestBody", media, e)
				}
			}
			problems, success := 0, 0
			for status, answer := range op.Responses {
				for media, e := range answer.Content {
					fits("responses/"+status, media, e)
				}
				switch {
				case status < "400":
					success++
				case len(answer.Codes) == 0 || answer.Content["application/problem+json"].Schema == nil:
					t.Errorf("%s: %s has no codes, or is no problem", where, status)
				default:
					problems += len(answer.Codes)
					for _, code := range answer.Codes {
						if !contains(answer.Description, "`"+code+"`: ") {
							t.Errorf("%s: %s does not say when %s: %s", where, status, code, answer.Description)
						}
					}
				}
			}
			if success != 1 || problems < 3 {
				t.Errorf("%s: %d kinds of success, %d problems", where, success, problems)
			}
		}
	}
	if count < 60 {
		t.Errorf("only %d operations: the document was not understood", count)
	}
}

// problemsOf has the problems of each operation, "404 not_found", by method and path. All
// APIs describe themselves alike.
var problemsOf struct {
	sync.Mutex
	byRoute map[string][]string
}

// documented fails the test if a problem was answered that the document does not know of
// the operation. It looks at every call of every test.
func (w *world) documented(method, path string, status int, code string) {
	w.tb.Helper()
	problemsOf.Lock()
	defer problemsOf.Unlock()
	if problemsOf.byRoute == nil {
		resp, err := w.http.Get(w.url + "/openapi.json")
		must(w.tb, err)
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		must(w.tb, err)
		var document struct {
			Paths map[string]map[string]described
		}
		if resp.StatusCode != http.StatusOK || json.Unmarshal(text, &document) != nil {
			return // this one is not started
		}
		problemsOf.byRoute = map[string][]string{}
		for path, methods := range document.Paths {
			for method, op := range methods {
				known := []string{}
				for status, answer := range op.Responses {
					for _, code := range answer.Codes {
						known = append(known, status+" "+code)
					}
				}
				problemsOf.byRoute[strings.ToUpper(method)+" "+path] = known
			}
		}
	}
	path, _, _ = strings.Cut(path, "?")
	best, literals := "", -1
	for route := range problemsOf.byRoute {
		if n := match(route, method+" "+path); n > literals {
			best, literals = route, n
		}
	}
	if best == "" {
		return // there is no such operation
	}
	if !slices.Contains(problemsOf.byRoute[best], statusCode(status, code)) {
		w.tb.Errorf("%s %s answered %s, which the document does not know of %s", method, path, statusCode(status, code), best)
	}
}

func statusCode(status int, code string) string { return strconv.Itoa(status) + " " + code }

// match returns how many parts of the route are those of the call, -1 if it is another one.
func match(route, call string) int {
	routes, calls := strings.Split(route, "/"), strings.Split(call, "/")
	if len(routes) != len(calls) {
		return -1
	}
	literal := 0
	for i, part := range routes {
		switch {
		case part == calls[i]:
			literal++
		case !strings.HasPrefix(part, "{"):
			return -1
		}
	}
	return literal
}
