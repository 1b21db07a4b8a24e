package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"mynah/chat"
)

// describe completes what /openapi.json says of an operation that has been registered: its
// description, examples and problems. It reports whether the operation's body may be left
// out.
func (a *API) describe(r *route) (bodyOptional bool) {
	op := a.operation(r)
	about, ok := abouts[r.OperationID]
	if !ok {
		panic("api: abouts has no " + r.OperationID)
	}
	op.Description = about.text
	if op.RequestBody != nil {
		media := op.RequestBody.Content["application/json"]
		schema := media.Schema
		if schema.Ref != "" {
			schema = a.huma.OpenAPI().Components.Schemas.SchemaFromRef(schema.Ref)
		}
		bodyOptional = len(schema.Required) == 0
		op.RequestBody.Required = !bodyOptional
		media.Example = example(about.in)
	}
	for _, media := range op.Responses[strconv.Itoa(op.DefaultStatus)].Content {
		media.Example = example(about.out)
	}
	delete(op.Responses, "default")
	a.describeProblems(op, r, about.problems)
	return bodyOptional
}

// example is an example as it stands in the document.
func example(text string) any {
	if text == "" {
		return nil
	}
	return json.RawMessage(text)
}

// problem is one that a status may stand for.
type problem struct {
	code chat.Code
	when string
}

// describeProblems adds what a request may meet in place of success: of any operation, of
// those of its kind, and of its own.
func (a *API) describeProblems(op *huma.Operation, r *route, own map[chat.Code]string) {
	problems := map[int][]problem{}
	add := func(status int, code chat.Code, when string) {
		// A code of a status is listed once.
		if !slices.ContainsFunc(problems[status], func(p problem) bool { return p.code == code }) {
			problems[status] = append(problems[status], problem{code, when})
		}
	}
	add(http.StatusUnprocessableEntity, chat.CodeInvalid, "A field or a parameter breaks its rule, which `errors` names, or is not known.")
	add(http.StatusBadRequest, chat.CodeInvalid, "The address or the body cannot be read: not UTF-8, not JSON, a key twice.")
	if op.RequestBody != nil {
		add(http.StatusRequestTimeout, chat.CodeInvalid, "The body did not come in time.")
		add(http.StatusRequestEntityTooLarge, chat.CodeTooLarge, fmt.Sprintf("The body has more than %d KiB.", bodyLimit>>10))
		add(http.StatusUnsupportedMediaType, chat.CodeInvalid, "The body is not application/json.")
	}
	if !r.public {
		add(http.StatusUnauthorized, chat.CodeUnauthenticated, "There is no token, or it is not accepted: sign in again or renew it.")
	}
	if roles := rolesFor(r.OperationID); len(roles) < len(callerRoles) && !r.public {
		when := "It is for tokens of role " + strings.Join(roles, ", ") + "."
		if more := own[chat.CodeNotAllowed]; more != "" {
			own = maps.Clone(own)
			own[chat.CodeNotAllowed] = more + " " + when
		} else {
			add(http.StatusForbidden, chat.CodeNotAllowed, when)
		}
	}
	for _, code := range slices.Sorted(maps.Keys(own)) {
		add(statuses[code], code, own[code])
	}
	if r.perAddress != nil || r.perAccount != nil || !r.public && r.Method != http.MethodGet || r.OperationID == "find" {
		add(http.StatusTooManyRequests, chat.CodeRateLimited, "Too often; `Retry-After` tells when it may be tried again.")
	}
	if r.idempotent {
		add(http.StatusUnprocessableEntity, chat.CodeKeyReused, "The Idempotency-Key was used for another request.")
	}
	add(http.StatusInternalServerError, chat.CodeUnavailable, "The server failed to answer. It is logged; try again later.")
	add(http.StatusServiceUnavailable, chat.CodeUnavailable, "The server, or what it needs, is away for a moment: try again after `Retry-After`.")

	schema := a.huma.OpenAPI().Components.Schemas.Schema(problemType, true, "Problem")
	for status, list := range problems {
		var text strings.Builder
		codes := make([]chat.Code, len(list))
		for i, p := range list {
			fmt.Fprintf(&text, "`%s`: %s\n\n", p.code, p.when)
			codes[i] = p.code
		}
		shown := &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: codes[0], Detail: strings.ReplaceAll(list[0].when, "`", "")}
		op.Responses[strconv.Itoa(status)] = &huma.Response{
			Description: strings.TrimSpace(text.String()),
			Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: schema, Example: shown}},
			Extensions:  map[string]any{"x-codes": codes},
		}
	}
}

// rolesFor returns the roles that may make the call.
func rolesFor(operation string) (roles []string) {
	for _, role := range callerRoles {
		if mayCall(role, operation) == nil {
			roles = append(roles, string(role))
		}
	}
	return roles
}

// operation returns what the document has of the route.
func (a *API) operation(r *route) *huma.Operation {
	item := a.huma.OpenAPI().Paths[r.Path]
	for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
		if op != nil && op.OperationID == r.OperationID {
			return op
		}
	}
	panic("api: " + r.OperationID + " is not in the document")
}
