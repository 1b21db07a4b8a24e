package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"mynah/authhook"
	"mynah/internal/ratelimit"
)

// bodyLimit is the most that a request's body may have, in bytes. The largest
// field is a profile's ext, 16 KiB.
const bodyLimit = 64 << 10

// route is a line of the table in routes.go and what its options add.
type route struct {
	huma.Operation
	public     bool // no token needed
	idempotent bool // takes an Idempotency-Key
	perAddress *ratelimit.Limiter
	perAccount *ratelimit.Limiter
}

type option func(*route)

// public is an option: the call needs no token.
func public(r *route) { r.public = true }

// created is an option: the call creates something. It answers 201 and takes an
// Idempotency-Key; it runs in one transaction with the answer that is kept for
// the key.
func created(r *route) {
	r.DefaultStatus = http.StatusCreated
	r.idempotent = true
}

// anyQuery is an option: unknown query parameters are ignored, because others
// write the query.
func anyQuery(r *route) { r.RejectUnknownQueryParameters = false }

// status is an option: the status of success, if it is not 200 (or 204 without a body).
func status(code int) option {
	return func(r *route) { r.DefaultStatus = code }
}

// perAddress is an option: an address may call so many times in the period.
func perAddress(l *ratelimit.Limiter) option {
	return func(r *route) { r.perAddress = l }
}

// perAccount is an option: somebody may call so many times in the period. It comes on
// top of the limit that all changes have.
func perAccount(l *ratelimit.Limiter) option {
	return func(r *route) { r.perAccount = l }
}

// handle adds one operation. pattern is method and path; name is the operation's
// id, which names a method in generated clients; summary is one line for /docs.
// The tag is the path's second part.
func handle[I, O any](a *API, pattern, name, summary string, handler func(context.Context, *I) (*O, error), options ...option) {
	method, path, ok := strings.Cut(pattern, " ")
	if !ok {
		panic("api: a pattern is a method and a path: " + pattern)
	}
	mustEmbedExported(reflect.TypeFor[I]())
	mustEmbedExported(reflect.TypeFor[O]())
	r := route{Operation: huma.Operation{
		OperationID: name, Method: method, Path: path, Summary: summary,
		MaxBodyBytes:                 bodyLimit,
		RejectUnknownQueryParameters: true,
	}}
	if parts := strings.Split(path, "/"); len(parts) > 2 {
		r.Tags = []string{parts[2]}
	}
	for _, o := range options {
		o(&r)
	}
	if !r.public {
		if len(rightsByCall[name]) != len(callerRoles) {
			panic("api: nobody has said in rights.go who may call " + name)
		}
		r.Security = []map[string][]string{{"token": {}}}
	}
	if r.idempotent {
		r.Parameters = append(r.Parameters, &huma.Param{
			Name: "Idempotency-Key", In: "header",
			Description: "A random id of the call, a UUID for example. Repeating the call with the same key within 24 hours gives the first answer again and creates nothing.",
			Schema:      &huma.Schema{Type: huma.TypeString, MinLength: new(1), MaxLength: new(128)},
		})
	}
	optional := false // set below, before the first request
	r.Middlewares = huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
		checked, err := a.admit(ctx.Context(), &r)
		if err != nil {
			a.refuse(ctx, err)
			return
		}
		next(&incoming{humaContext: huma.WithContext(ctx, checked), optional: optional})
	}}
	huma.Register(a.huma, r.Operation, func(ctx context.Context, in *I) (*O, error) {
		out, err := runHandler(ctx, a, &r, in, handler)
		if err != nil {
			p := a.problemOf(ctx, err)
			requestOf(ctx).refundIfFailed(p)
			return nil, p
		}
		a.awaitApplied(ctx, &r, in)
		return out, nil
	})
	optional = a.describe(&r)
}

// humaContext is embedded under another name than that of its method Context.
type humaContext = huma.Context

// incoming is a request as huma reads it.
type incoming struct {
	humaContext
	optional bool // no field of the body is required
}

// Unwrap is for huma's adapters.
func (c *incoming) Unwrap() huma.Context { return c.humaContext }

// SetReadDeadline leaves the server's own deadline, which is for the whole request: huma
// would begin a new one with the body.
func (c *incoming) SetReadDeadline(time.Time) error { return nil }

// BodyReader returns the body. One without a required field may be left out: it then is an
// object without fields.
func (c *incoming) BodyReader() io.Reader {
	if !c.optional {
		return c.humaContext.BodyReader()
	}
	return &bodyWithDefault{body: c.humaContext.BodyReader(), otherwise: strings.NewReader("{}")}
}

// bodyWithDefault reads body, or otherwise if that has nothing.
type bodyWithDefault struct {
	body, otherwise io.Reader
	some            bool
}

func (b *bodyWithDefault) Read(p []byte) (n int, err error) {
	if n, err = b.body.Read(p); n > 0 {
		b.some = true
	}
	if n == 0 && errors.Is(err, io.EOF) && !b.some {
		return b.otherwise.Read(p)
	}
	return n, err
}

// mustEmbedExported panics if a struct of t embeds one with an unexported name:
// huma would not see its fields, and refuse them as unknown.
func mustEmbedExported(t reflect.Type) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() {
		return
	}
	for f := range t.Fields() {
		if f.Anonymous && !f.IsExported() {
			panic("api: " + t.String() + " embeds " + f.Name + ", which must be exported")
		}
		if f.IsExported() {
			mustEmbedExported(f.Type)
		}
	}
}

// runHandler calls the handler, by way of the Idempotency-Key if there is one.
func runHandler[I, O any](ctx context.Context, a *API, r *route, in *I, handler func(context.Context, *I) (*O, error)) (*O, error) {
	if !r.idempotent {
		return handler(ctx, in)
	}
	var out *O
	work := func(ctx context.Context) (err error) {
		out, err = handler(ctx, in)
		return err
	}
	key := requestOf(ctx).key
	if key == "" {
		return out, a.db.Tx(ctx, work)
	}
	if !validKey(key) {
		return nil, errBadKey
	}
	var replayed O
	again, err := a.runOnce(ctx, key, r.OperationID, in, &replayed, func(ctx context.Context) (any, error) {
		err := work(ctx)
		return out, err
	})
	if again {
		return &replayed, err
	}
	return out, err
}

func (a *API) refuse(ctx huma.Context, err error) {
	p := a.problemOf(ctx.Context(), err)
	requestOf(ctx.Context()).refundIfFailed(p)
	for name, values := range p.headers {
		ctx.SetHeader(name, values[0])
	}
	ctx.SetHeader("Content-Type", p.ContentType(""))
	ctx.SetStatus(p.Status)
	_ = encodeJSON(ctx.BodyWriter(), p) // the client is gone: nobody to tell
}

// admit counts the request, finds out who calls and whether the route is for
// them. The limit comes first: verifying costs more than counting.
func (a *API) admit(ctx context.Context, r *route) (context.Context, error) {
	req := requestOf(ctx)
	if r.perAddress != nil {
		if err := req.count(r.perAddress, ratelimit.AddressKey(req.address), 1); err != nil {
			return nil, err
		}
	}
	if r.public {
		return ctx, nil
	}
	caller, err := a.authenticate(ctx, req)
	if err != nil {
		return nil, err
	}
	if err := mayCall(caller.Role, r.OperationID); err != nil {
		return nil, err
	}
	if r.Method != http.MethodGet {
		if err := countFor(ctx, caller, a.limits.changes, caller.Subject, 1); err != nil {
			return nil, err
		}
	}
	if r.perAccount != nil {
		if err := countFor(ctx, caller, r.perAccount, caller.Subject, 1); err != nil {
			return nil, err
		}
	}
	return context.WithValue(ctx, callerKey{}, caller), nil
}

// countFor counts n for the key, which stands for what the caller does. Administrators and
// services, which the operator has made, may do as much as they like.
func countFor(ctx context.Context, c *Caller, l *ratelimit.Limiter, key string, n int) error {
	if c.Role == authhook.RoleAdmin || c.Role == authhook.RoleService {
		return nil
	}
	return requestOf(ctx).count(l, key, n)
}

// empty is the input or output of calls that have none.
type empty struct{}

// body wraps a value as the body of an answer.
type body[T any] struct {
	Body T
}

// answer returns v as the body of an answer.
func answer[T any](v T) *body[T] { return &body[T]{Body: v} }
