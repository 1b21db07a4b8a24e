package api

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"

	"mynah/schema/wire"
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
				Description: "Accounts, contacts, groups and devices of a Mynah server. Messages travel over MQTT: see /docs/protocol and /asyncapi.yaml. " +
					"Every error is a problem document (RFC 9457); the codes of each operation stand with its statuses.",
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

// docsPolicy lets the pages load nothing from elsewhere.
const docsPolicy = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

// wireFolder is where what describes MQTT is served. The links of PROTOCOL.md, which are
// those of the repository, lead there from /docs/protocol.
const wireFolder = "/docs/schema/wire"

// serveDocs renders the document once all routes are known, and the protocol.
func (a *API) serveDocs() (err error) {
	if a.document, err = json.Marshal(a.huma.OpenAPI()); err != nil {
		return err
	}
	protocol, err := renderMarkdown("Mynah: the contract with clients", a.cfg.Protocol)
	if err != nil {
		return err
	}
	a.serveDocument("/openapi.json", "application/openapi+json", a.document)
	a.serveDocument("/docs", "text/html; charset=utf-8", docsPage)
	a.serveDocument("/docs/protocol", "text/html; charset=utf-8", protocol)
	a.serveDocument("/docs/protocol.md", "text/markdown; charset=utf-8", a.cfg.Protocol)
	var list strings.Builder
	list.WriteString("# Mynah over MQTT\n\n")
	for name, text := range map[string][]byte{
		"asyncapi.yaml": wire.AsyncAPI, "message.schema.json": wire.Message, "error.schema.json": wire.Error, "presence.schema.json": wire.Presence,
	} {
		kind := "application/schema+json"
		if name == "asyncapi.yaml" {
			kind = "application/yaml"
		}
		a.serveDocument(wireFolder+"/"+name, kind, text)
	}
	for _, name := range []string{"asyncapi.yaml", "message.schema.json", "error.schema.json", "presence.schema.json"} {
		fmt.Fprintf(&list, "- [%s](%s/%s)\n", name, wireFolder, name)
	}
	index, err := renderMarkdown("Mynah over MQTT", []byte(list.String()))
	if err != nil {
		return err
	}
	a.serveDocument(wireFolder, "text/html; charset=utf-8", index)
	// Its references lead to the schemas from there, too.
	a.serveDocument("/asyncapi.yaml", "application/yaml", bytes.ReplaceAll(wire.AsyncAPI, []byte("$ref: ./"), []byte("$ref: ."+wireFolder+"/")))
	return nil
}

// serveDocument serves a document that stays as it is.
func (a *API) serveDocument(path, kind string, text []byte) {
	a.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Cache-Control", "public, max-age=300")
		w.Header().Set("Content-Security-Policy", docsPolicy)
		_, _ = w.Write(text)
	})
}

// markdownPage is around a document that was rendered.
//
//go:embed markdown.html
var markdownPage string

// renderMarkdown returns a page that shows the text.
func renderMarkdown(title string, text []byte) ([]byte, error) {
	var rendered bytes.Buffer
	md := goldmark.New(goldmark.WithExtensions(extension.Table), goldmark.WithParserOptions(parser.WithAutoHeadingID()))
	if err := md.Convert(text, &rendered); err != nil {
		return nil, fmt.Errorf("render %s: %w", title, err)
	}
	page, err := template.New("page").Parse(markdownPage)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", title, err)
	}
	var out bytes.Buffer
	err = page.Execute(&out, struct {
		Title string
		Text  template.HTML
	}{title, template.HTML(rendered.String())}) //nolint:gosec // G203: a file of this repository, in which Goldmark leaves no HTML
	return out.Bytes(), err
}
