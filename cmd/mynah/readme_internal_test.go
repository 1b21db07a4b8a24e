package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

var update = flag.Bool("update", false, "write the tables of flags in README.md and README.zh-CN.md")

const (
	tableBegin = "<!-- flags: made by go test ./cmd/mynah -run TestReadmeListsTheFlags -update -->\n"
	tableEnd   = "<!-- flags end -->\n"
)

// servers are the commands whose flags are settings. What the others take is a question
// asked once.
var servers = map[string]bool{"serve": true, "broker": true, "archiver": true, "api": true}

// settingFlags returns the flags of the servers, each once, in the order of --help.
func settingFlags(tb testing.TB) []*kong.Flag {
	tb.Helper()
	parser, err := kong.New(&cli{}, grammarOptions...)
	if err != nil {
		tb.Fatal(err)
	}
	var all []*kong.Flag
	seen := map[string]bool{"help": true, "help-all": true}
	add := func(flags []*kong.Flag) {
		for _, f := range flags {
			if !seen[f.Name] && !f.Hidden {
				seen[f.Name] = true
				all = append(all, f)
			}
		}
	}
	add(parser.Model.Flags)
	for _, command := range parser.Model.Children {
		if servers[command.Name] {
			add(command.Flags)
		}
	}
	// By their groups, those without one first.
	groupKeys := make([]string, len(groupTitles))
	for i, g := range groupTitles {
		groupKeys[i] = g.Key
	}
	order := func(f *kong.Flag) int {
		if f.Group == nil {
			return 0
		}
		return slices.Index(groupKeys, f.Group.Key) + 1
	}
	slices.SortStableFunc(all, func(a, b *kong.Flag) int { return order(a) - order(b) })
	return all
}

// groupOf returns the title of the flag's group.
func groupOf(f *kong.Flag, texts map[string]string) string {
	switch {
	case f.Group == nil:
		return ""
	case texts != nil:
		return texts["group "+f.Group.Key]
	}
	return f.Group.Title
}

var (
	inText  = regexp.MustCompile(`--[a-z][a-z-]*[a-z]|[^\s,;：，；（、]+://([^\s，；）、]*[^\s.,;:，；：。）)、])?`)
	escaped = strings.NewReplacer("|", `\|`, "*", `\*`)
)

// cell returns a text for a table of Markdown: flags and addresses as code.
func cell(text string) string {
	var b strings.Builder
	at := 0
	for _, m := range inText.FindAllStringIndex(text, -1) {
		b.WriteString(escaped.Replace(text[at:m[0]]))
		b.WriteString("`" + strings.ReplaceAll(text[m[0]:m[1]], "|", `\|`) + "`")
		at = m[1]
	}
	b.WriteString(escaped.Replace(text[at:]))
	return b.String()
}

// flagTable returns the table, with the texts in another language if there are some.
func flagTable(tb testing.TB, head string, texts map[string]string) string {
	tb.Helper()
	var b strings.Builder
	b.WriteString(head + "\n|---|---|---|\n")
	known := map[string]bool{}
	group := ""
	for _, f := range settingFlags(tb) {
		if f.Group != nil && f.Group.Key != group {
			group = f.Group.Key
			known["group "+group] = true
			title := groupOf(f, texts)
			if title == "" {
				tb.Errorf("the group %q has no title; write it beside the others in config.go, and as \"group %s\" in cmd/mynah/flags.zh.yaml", group, group)
			}
			fmt.Fprintf(&b, "| **%s** | | |\n", title)
		}
		known[f.Name] = true
		text, value := f.Help, ""
		if texts != nil {
			if text = texts[f.Name]; text == "" {
				tb.Errorf("--%s has no text in cmd/mynah/flags.zh.yaml; write what its help says", f.Name)
			}
		}
		if f.Default != "" {
			value = "`" + f.Default + "`"
		}
		fmt.Fprintf(&b, "| `--%s` | %s | %s |\n", f.Name, value, cell(text))
	}
	for name := range texts {
		if !known[name] {
			tb.Errorf("cmd/mynah/flags.zh.yaml has a text for --%s, which is no flag of a server; take it out", name)
		}
	}
	return b.String()
}

// The READMEs list every setting that there is, with the default that it has.
func TestReadmeListsTheFlags(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("flags.zh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	chinese := map[string]string{}
	if err := yaml.Unmarshal(text, &chinese); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"README.md":       flagTable(t, "| flag | default | |", nil),
		"README.zh-CN.md": flagTable(t, "| 参数 | 默认值 | |", chinese),
	} {
		path := filepath.Join("..", "..", name)
		readme, err := os.ReadFile(path) //nolint:gosec // the repository's own
		if err != nil {
			t.Fatal(err)
		}
		before, rest, ok := strings.Cut(string(readme), tableBegin)
		have, after, ok2 := strings.Cut(rest, tableEnd)
		if !ok || !ok2 {
			t.Fatalf("%s has lost the lines around the table of flags:\n%s%s", name, tableBegin, tableEnd)
		}
		if have == want {
			continue
		}
		if *update {
			if err := os.WriteFile(path, []byte(before+tableBegin+want+tableEnd+after), 0o644); err != nil { //nolint:gosec // as the others
				t.Fatal(err)
			}
			continue
		}
		t.Errorf("%s does not list the flags as they are; run go test ./cmd/mynah -run TestReadmeListsTheFlags -update:\n%s", name, cmp.Diff(have, want))
	}
}
