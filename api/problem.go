package api

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/validation"

	"mynah/chat"
	"mynah/schema/pgtx"
)

// statuses is the one table from the protocol's codes to HTTP statuses.
var statuses = map[chat.Code]int{
	chat.CodeInvalid:         http.StatusUnprocessableEntity,
	chat.CodeBadMessage:      http.StatusUnprocessableEntity,
	chat.CodeBadTopic:        http.StatusUnprocessableEntity,
	chat.CodeTooLarge:        http.StatusRequestEntityTooLarge,
	chat.CodeUnauthenticated: http.StatusUnauthorized,
	chat.CodeStaleSignIn:     http.StatusForbidden,
	chat.CodeNotAllowed:      http.StatusForbidden,
	chat.CodeNotMember:       http.StatusForbidden,
	chat.CodeMuted:           http.StatusForbidden,
	chat.CodeNotFound:        http.StatusNotFound,
	chat.CodeConflict:        http.StatusConflict,
	chat.CodeLimit:           http.StatusConflict,
	chat.CodeKeyReused:       http.StatusUnprocessableEntity,
	chat.CodeRateLimited:     http.StatusTooManyRequests,
	chat.CodeUpstream:        http.StatusBadGateway,
	chat.CodeUnavailable:     http.StatusServiceUnavailable,
	chat.CodeLogFull:         http.StatusServiceUnavailable,
}

// Problem is an error as clients see it (RFC 9457). Its code is the same word
// that MQTT clients read in reason strings.
type Problem struct {
	Type   string        `json:"type" doc:"Always about:blank: the code tells what it is"`
	Title  string        `json:"title" doc:"The status in words"`
	Status int           `json:"status" doc:"The HTTP status"`
	Code   chat.Code     `json:"code" doc:"What went wrong, for programs"`
	Detail string        `json:"detail,omitempty" doc:"What went wrong, for people"`
	Errors []FieldDetail `json:"errors,omitempty" doc:"The fields that break a rule"`

	headers http.Header
}

// FieldDetail says which rule a field breaks. It does not repeat the field's
// value, which may be a password.
type FieldDetail struct {
	Location string `json:"location" doc:"Where, for example body.name or query.limit"`
	Message  string `json:"message" doc:"The rule"`
}

// Error returns the detail.
func (p *Problem) Error() string { return string(p.Code) + ": " + p.Detail }

// GetStatus returns the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders returns the headers that belong to the problem, such as Retry-After.
func (p *Problem) GetHeaders() http.Header { return p.headers }

// ContentType returns the media type of RFC 9457 section 3.
func (*Problem) ContentType(string) string { return "application/problem+json" }

var problemType = reflect.TypeFor[Problem]()

func newProblem(code chat.Code, detail string) *Problem {
	status := statuses[code]
	p := &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: detail}
	switch code {
	case chat.CodeUnauthenticated: // RFC 9110 section 11.6.1
		p.headers = http.Header{"Www-Authenticate": {`Bearer realm="mynah"`}}
	case chat.CodeUnavailable, chat.CodeLogFull:
		p.headers = http.Header{"Retry-After": {"2"}}
	}
	return p
}

// huma is set up through variables of its package; this is the only package that
// uses it.
func init() {
	// encoding/json takes "Name" for "name"; a client must not come to rely on it.
	huma.ValidateStrictCasing = true
	// Names in its messages are quoted: a field may be called to, or at.
	validation.MsgExpectedRequiredProperty = `the property "%s" is required`
	validation.MsgExpectedDependentRequiredProperty = `the property "%s" is required where "%s" is given`
	validation.MsgUnexpectedProperty = "there is no such property"
	validation.MsgExpectedMatchPattern = `must match the pattern "%s"`
	validation.MsgExpectedBePattern = `must be "%s"`
	validation.MsgExpectedOneOf = `must be one of: %s`
	// Its own errors: validation, bodies that cannot be read.
	huma.NewError = func(status int, message string, details ...error) huma.StatusError {
		return statusProblem(status, message, details...)
	}
}

// statusProblem is a problem that was found by HTTP's own rules.
func statusProblem(status int, message string, details ...error) *Problem {
	p := &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: message}
	switch {
	case status == http.StatusRequestEntityTooLarge:
		p.Code = chat.CodeTooLarge
	case status == http.StatusNotFound:
		p.Code = chat.CodeNotFound
	case status >= http.StatusInternalServerError:
		// Whatever it is, it is not the caller's business.
		p.Code, p.Detail = chat.CodeUnavailable, "The server failed to answer. Try again later."
		return p
	default:
		p.Code = chat.CodeInvalid
	}
	for _, err := range details {
		if detail, ok := errors.AsType[*huma.ErrorDetail](err); ok {
			p.Errors = append(p.Errors, FieldDetail{Location: detail.Location, Message: detail.Message})
		} else if err != nil {
			p.Errors = append(p.Errors, FieldDetail{Message: err.Error()})
		}
	}
	return p
}

// problemOf turns any error of a handler into what the client sees. What is not
// meant for clients is logged here, once, and answered without its text.
func (a *API) problemOf(ctx context.Context, err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	if refusal, ok := errors.AsType[*chat.Error](err); ok {
		if _, known := statuses[refusal.Code]; known {
			p := newProblem(refusal.Code, refusal.Reason)
			if wait, ok := errors.AsType[interface {
				error
				RetryAfter() time.Duration
			}](err); ok {
				p.headers = http.Header{"Retry-After": {strconv.Itoa(int(math.Ceil(max(wait.RetryAfter().Seconds(), 1))))}}
			}
			return p
		}
	}
	if errors.Is(err, context.Canceled) {
		return newProblem(chat.CodeUnavailable, "The request was given up.")
	}
	if pgtx.Unreachable(err) {
		a.log.LogAttrs(ctx, slog.LevelWarn, "database away", slog.String("request", requestID(ctx)), slog.Any("error", err))
		return newProblem(chat.CodeUnavailable, "The database cannot be reached right now. Try again.")
	}
	a.log.LogAttrs(ctx, slog.LevelError, "request failed", slog.String("request", requestID(ctx)), slog.Any("error", err))
	return statusProblem(http.StatusInternalServerError, "")
}

// isRefusal reports whether err was written for clients.
func isRefusal(err error) bool {
	_, ok := errors.AsType[*chat.Error](err)
	return ok
}
