package api

import (
	_ "embed"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// docsPage shows /openapi.json to people. It is one file without any address
// outside this server: many who run Mynah have no way to a CDN.
//
//go:embed docs.html
var docsPage []byte

func humaConfig() huma.Config {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Mynah", Version: "1",
				Description: "Accounts, contacts, groups and devices of a Mynah server. Messages travel over MQTT.",
			},
			Components: &huma.Components{
				Schemas: registry,
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"token": {Type: "http", Scheme: "bearer", BearerFormat: "JWT"},
				},
			},
		},
		Formats:       map[string]huma.Format{"application/json": strictJSON, "json": strictJSON},
		DefaultFormat: "application/json",
	}
}

// serveDocs renders the document once all routes are known.
func (a *API) serveDocs() (err error) {
	if a.document, err = json.Marshal(a.huma.OpenAPI()); err != nil {
		return err
	}
	a.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		_, _ = w.Write(a.document)
	})
	a.mux.HandleFunc("GET /docs", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "public, max-age=300")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		_, _ = w.Write(docsPage)
	})
	return nil
}
