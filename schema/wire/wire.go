// Package wire is the description of what Mynah says over MQTT, for people and for
// tools: an AsyncAPI 3.0 document of the topics and JSON Schemas (draft 2020-12) of
// what is received on them. It grows with the protocol; what has shipped does not
// change its meaning.
//
// The package's tests hold the schemas against every message that package chat
// renders, those of e2e against what the broker really sends.
package wire

import _ "embed"

var (
	// AsyncAPI is the AsyncAPI document, in YAML. It refers to the schemas by the
	// names of their files.
	//go:embed asyncapi.yaml
	AsyncAPI []byte

	// Message is the schema of what is received on user/<id>, group/<id> and
	// their signals (message.schema.json).
	//go:embed message.schema.json
	Message []byte

	// Error is the schema of what is received on user/<id>/error
	// (error.schema.json).
	//go:embed error.schema.json
	Error []byte

	// Presence is the schema of what is received on presence/<id>
	// (presence.schema.json).
	//go:embed presence.schema.json
	Presence []byte
)
