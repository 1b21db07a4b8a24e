package api

import (
	"github.com/danielgtaylor/huma/v2"
)

// describe completes what /openapi.json says of an operation that has been registered. It
// reports whether the operation's body may be left out.
func (a *API) describe(r *route) (bodyOptional bool) {
	op := a.operation(r)
	if op.RequestBody != nil {
		schema := op.RequestBody.Content["application/json"].Schema
		if schema.Ref != "" {
			schema = a.huma.OpenAPI().Components.Schemas.SchemaFromRef(schema.Ref)
		}
		bodyOptional = len(schema.Required) == 0
		op.RequestBody.Required = !bodyOptional
	}
	return bodyOptional
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
