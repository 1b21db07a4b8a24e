package api

import (
	"context"
	"net/http"
	"strings"

	"mynah/people"
)

// oidcHandlers send browsers to OpenID Connect providers and take them back.
type oidcHandlers struct {
	people *people.Service
	cfg    *Config
}

// stateCookie binds an OpenID Connect sign-in to the browser in which it was
// begun.
const stateCookie = "mynah_oidc"

type beginInput struct {
	Provider  string `path:"provider" maxLength:"32" pattern:"^[a-z0-9-]+$"`
	Redirect  string `query:"redirect" required:"true" maxLength:"1024" doc:"Where the browser is sent with ?ticket=…, or ?error=…"`
	Challenge string `query:"challenge" maxLength:"43" doc:"S256 (RFC 7636) of a random verifier; then only the verifier opens the ticket"`
}

type redirectOutput struct {
	Status    int         `json:"-"`
	Location  string      `header:"Location"`
	SetCookie http.Cookie `header:"Set-Cookie"`
}

func (h *oidcHandlers) beginOIDC(ctx context.Context, in *beginInput) (*redirectOutput, error) {
	address, state, err := h.people.OIDC.Begin(ctx, in.Provider, in.Redirect, in.Challenge)
	if err != nil {
		return nil, err
	}
	return &redirectOutput{Status: http.StatusFound, Location: address, SetCookie: h.cookie(in.Provider, state, 600)}, nil
}

// cookie is for the callback alone. Lax: the provider's redirect is a navigation
// from another site.
func (h *oidcHandlers) cookie(provider, state string, maxAge int) http.Cookie {
	return http.Cookie{ //nolint:gosec // G124: Secure wherever the server is reached by TLS
		Name: stateCookie, Value: state, Path: "/v1/oidc/" + provider + "/callback", MaxAge: maxAge,
		HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: strings.HasPrefix(h.cfg.PublicURL, "https:"),
	}
}

type callbackInput struct {
	Provider string `path:"provider" maxLength:"32" pattern:"^[a-z0-9-]+$"`
	State    string `query:"state" maxLength:"128"`
	Code     string `query:"code" maxLength:"4096"`
	Failure  string `query:"error" maxLength:"256"`
	Cookie   string `cookie:"mynah_oidc" maxLength:"128"`
}

func (h *oidcHandlers) finishOIDC(ctx context.Context, in *callbackInput) (*redirectOutput, error) {
	address, err := h.people.OIDC.Finish(ctx, in.Provider, people.Callback{
		State: in.State, Code: in.Code, Failure: in.Failure, Cookie: in.Cookie,
	})
	if err != nil {
		return nil, err
	}
	return &redirectOutput{Status: http.StatusFound, Location: address, SetCookie: h.cookie(in.Provider, "", -1)}, nil
}
