package main

import (
	"io"
	"os"
	"strings"

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
		if value := getenv(envName(flag.Name)); value != "" && flag.Name != "help" {
			return value, nil
		}
		return nil, nil
	})
}

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
		// The parser's error quotes lines, which may hold the secret.
		return nil, refuse("config", "%s is not a YAML or JSON object with the flags' names as keys", path)
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
		if !known[key] {
			return refuse("config", "%s has the key %q, which is no flag; mynah COMMAND --help lists them", f.path, key)
		}
	}
	return nil
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
	if value.Flag == nil || value.Name == "help" {
		return value.Help
	}
	help := value.Help
	// Without a placeholder kong shows the default by itself.
	if value.HasDefault && value.Default != "" && value.Flag.PlaceHolder != "" {
		help += " Default: " + value.Default + "."
	}
	return help + " ($" + envName(value.Name) + ")"
}
