package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"mynah/schema/wire"
)

// Everything that any client of any of these tests receives on a chat topic is held
// against the JSON Schemas that schema/wire publishes.
var checkWire = sync.OnceValue(func() *wireChecker {
	return &wireChecker{
		message:  mustCompile("message", wire.Message),
		refusal:  mustCompile("error", wire.Error),
		presence: mustCompile("presence", wire.Presence),
	}
})

type wireChecker struct {
	message, refusal, presence *jsonschema.Schema

	mu       sync.Mutex // guards what follows
	checked  int
	failures []string
}

func mustCompile(name string, raw []byte) *jsonschema.Schema {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		panic(fmt.Sprintf("schema of %s: %v", name, err))
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource(name+".json", document); err != nil {
		panic(fmt.Sprintf("schema of %s: %v", name, err))
	}
	return compiler.MustCompile(name + ".json")
}

// check notes what does not match; report tells it at the end of the run.
func (c *wireChecker) check(d delivery) {
	schema := c.message
	switch {
	case strings.HasPrefix(d.Topic, "presence/"):
		schema = c.presence
	case strings.HasPrefix(d.Topic, "user/") && strings.HasSuffix(d.Topic, "/error"):
		schema = c.refusal
	case strings.HasPrefix(d.Topic, "user/"), strings.HasPrefix(d.Topic, "group/"):
	default:
		return // plain MQTT
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(d.Payload))
	if err == nil {
		err = schema.Validate(document)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checked++
	if err != nil && len(c.failures) < 10 {
		c.failures = append(c.failures, fmt.Sprintf("%s: %v\n\t%.500s", d.Topic, err, d.Payload))
	}
}

// report returns whether everything matched.
func (c *wireChecker) report() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, failure := range c.failures {
		fmt.Fprintf(os.Stderr, "what was received does not match schema/wire: %s\n", failure)
	}
	return len(c.failures) == 0
}
