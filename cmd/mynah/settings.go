package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/alecthomas/kong"
	"gopkg.in/yaml.v3"
)

// A flag's value comes from the command line, else from the environment, else
// from the file named by --config, else it is the default.

// envName is a flag's environment variable: MYNAH_ and the flag in capitals.
func envName(flag string) string {
	return "MYNAH_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// environment resolves flags from environment variables. Kong could do so by
// itself, but it reads the process's own environment and quotes a value that it
// cannot understand, secret or not.
func environment(getenv func(string) string) kong.Resolver {
	return kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
		if value := getenv(envName(flag.Name)); value != "" && flag.Name != "help" && flag.Name != "help-all" {
			return value, nil
		}
		return nil, nil
	})
}

// atLine finds where a YAML parser's error says that the fault is.
var atLine = regexp.MustCompile(`line [0-9]+`)

// configFile resolves flags from a YAML file (JSON is YAML too) whose keys are
// the flags' names.
func configFile(path string) (kong.Resolver, error) {
	file, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, refuse("config", "cannot be read: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read
	values := map[string]yaml.Node{}
	if err := yaml.NewDecoder(file).Decode(&values); err != nil && err != io.EOF { //nolint:errorlint // io.EOF is returned bare for an empty file
		// The parser's error quotes lines, which may hold the secret; where it
		// found the fault and whether that is a key given twice is no secret.
		what := "is not a YAML or JSON object with the flags' names as keys"
		if strings.Contains(err.Error(), "already defined at line") {
			what = "has a key twice"
		}
		if at := atLine.FindString(err.Error()); at != "" {
			what += "; see " + at
		}
		return nil, refuse("config", "%s %s", path, what)
	}
	resolver := &fileResolver{path: path, values: map[string]string{}}
	for key, node := range values {
		text, ok := written(&node)
		if !ok {
			return nil, refuse("config", "%s has under %q what no flag can be: give a text, a number, a list of them, or names with a text each", path, key)
		}
		resolver.values[key] = text
	}
	return resolver, nil
}

// written returns a value as the command line would have it: a list with commas, names
// with values as NAME=VALUE;NAME=VALUE. Scalars stay as they are written: a number that
// is read and printed again may be another, and a secret may look like one.
func written(node *yaml.Node) (text string, ok bool) {
	scalar := func(node *yaml.Node) (string, bool) {
		if node.Kind == yaml.AliasNode {
			node = node.Alias
		}
		switch {
		case node.Kind != yaml.ScalarNode:
			return "", false
		case node.Tag == "!!null":
			return "", true
		case node.Tag == "!!bool":
			return strings.ToLower(node.Value), true
		}
		return node.Value, true
	}
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	var parts []string
	switch node.Kind {
	case yaml.SequenceNode:
		for _, item := range node.Content {
			part, ok := scalar(item)
			if !ok {
				return "", false
			}
			parts = append(parts, part)
		}
		return kong.JoinEscaped(parts, ','), true
	case yaml.MappingNode: // keys and values in turn
		for i := 0; i+1 < len(node.Content); i += 2 {
			name, ok := scalar(node.Content[i])
			value, well := scalar(node.Content[i+1])
			if !ok || !well {
				return "", false
			}
			parts = append(parts, name+"="+value)
		}
		return kong.JoinEscaped(parts, pairsSeparator), true
	}
	return scalar(node)
}

type fileResolver struct {
	path   string
	values map[string]string // "" is as if the key were not there
}

// Validate refuses keys that no command knows: a misspelt setting that is
// silently left out is found too late.
func (f *fileResolver) Validate(app *kong.Application) error {
	known := map[string]bool{}
	err := kong.Visit(app, func(node kong.Visitable, next kong.Next) error {
		if flag, ok := node.(*kong.Flag); ok {
			known[flag.Name] = true
		}
		return next(nil)
	})
	if err != nil {
		return err
	}
	for key := range f.values {
		if known[key] {
			continue
		}
		if flag := nearest(key, slices.Sorted(maps.Keys(known))); flag != "" {
			return refuse("config", "%s has the key %q, which is no flag; did you mean %q?", f.path, key, flag)
		}
		return refuse("config", "%s has the key %q, which is no flag; mynah COMMAND --help lists them", f.path, key)
	}
	return nil
}

// nearest returns the flag that somebody most likely meant who wrote the key, or "": it is
// the same in other writing (mqtt_addr, mqttAddr, --mqtt-addr, MYNAH_MQTT_ADDR), or one or
// two letters away.
func nearest(key string, flags []string) string {
	plain := func(text string) string {
		return strings.Map(func(r rune) rune {
			if r == '-' || r == '_' || r == '.' || r == ' ' {
				return -1
			}
			return unicode.ToLower(r)
		}, text)
	}
	wanted := strings.TrimPrefix(plain(key), "mynah")
	best, distance := "", 3
	for _, flag := range flags {
		// Two letters of a short word make another one of it.
		if d := editDistance(wanted, plain(flag)); d < distance && d <= len(flag)/4 {
			best, distance = flag, d
		}
	}
	return best
}

// editDistance is how many letters have to be put in, taken out or replaced to make b of a
// (Levenshtein).
func editDistance(a, b string) int {
	before := make([]int, len(b)+1)
	for j := range before {
		before[j] = j
	}
	for i := range len(a) {
		now := make([]int, len(b)+1)
		now[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			now[j+1] = min(before[j+1]+1, now[j]+1, before[j]+cost)
		}
		before = now
	}
	return before[len(b)]
}

// duration reads a duration. A bare number is a mistake that is easily made, and nobody
// but its writer knows what was meant.
func duration(ctx *kong.DecodeContext, target reflect.Value) error {
	var text string
	if err := ctx.Scan.PopValueInto("duration", &text); err != nil {
		return err
	}
	value, err := time.ParseDuration(text)
	if err == nil {
		target.SetInt(int64(value))
		return nil
	}
	if number, err := strconv.ParseFloat(text, 64); err == nil && number > 0 {
		return fmt.Errorf("%q has no unit; did you mean %[2]ss, %[2]sm or %[2]sh?", text, text)
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if number, err := strconv.ParseFloat(days, 64); err == nil {
			return fmt.Errorf("%q is not in hours, minutes or seconds; did you mean %gh?", text, 24*number)
		}
	}
	return fmt.Errorf("%q is not a duration; write 24h, 90m or 1h30m", text)
}

// Resolve returns the file's value for the flag.
func (f *fileResolver) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if value := f.values[flag.Name]; value != "" {
		return value, nil
	}
	return nil, nil
}

// configPath finds the name of the settings file before anything else is
// parsed, since what is in it takes part in the parsing.
func configPath(args []string, getenv func(string) string) string {
	for i, arg := range args {
		if arg == "--" {
			break
		}
		if path, ok := strings.CutPrefix(arg, "--config="); ok {
			return path
		}
		if arg == "--config" && i+1 < len(args) {
			return args[i+1]
		}
	}
	return getenv(envName("config"))
}

// helpWithEnv adds the default and the environment variable to a flag's help.
func helpWithEnv(value *kong.Value) string {
	if value.Flag == nil || value.Name == "help" || value.Name == "help-all" {
		return value.Help
	}
	help := value.Help
	// Without a placeholder kong shows the default by itself.
	if value.HasDefault && value.Default != "" && value.Flag.PlaceHolder != "" {
		help += " Default: " + value.Default + "."
	}
	return help + " ($" + envName(value.Name) + ")"
}
