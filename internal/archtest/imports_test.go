// Package archtest_test compares the code with the documents: imports with the
// table in ARCHITECTURE.md, depguard's rules with that table, and cited
// documents with the files that exist.
package archtest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the rules of depguard that follow from ARCHITECTURE.md's table")

const (
	root   = "../.."
	module = "mynah/"
	begin  = "        # Made from ARCHITECTURE.md's table by `go test ./internal/archtest -update`.\n"
	end    = "        # The end of what is made from the table.\n"
)

// std in the column of imports means that a folder imports only the standard library
// and the other entries of its cell.
const std = "standard library"

// outside maps the name of an external package in the table to its import path.
var outside = map[string]string{"Mochi's packets": "github.com/mochi-mqtt/server/v2/packets"}

// row is a line of ARCHITECTURE.md's table: one or more folders and their imports. A
// folder includes its subfolders, except those with a row of their own.
type row struct {
	folders []string
	all     bool // may import everything
	strict  bool // only the standard library and extern
	imports []string
	extern  []string
}

func (r row) name() string { return r.folders[0] }

// table parses ARCHITECTURE.md's table.
func table(tb testing.TB) []row {
	tb.Helper()
	var rows []row
	inside := false
	for line := range strings.Lines(mustRead(tb, "ARCHITECTURE.md")) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		switch {
		case strings.HasPrefix(line, "| folder | holds | imports |"):
			inside = true
			continue
		case !inside || strings.HasPrefix(line, "|---"):
			continue
		case !strings.HasPrefix(line, "|"):
			inside = false
			continue
		case len(cells) != 5:
			tb.Fatalf("a line of the table has %d cells: %s", len(cells)-2, line)
		}
		var r row
		for f := range strings.SplitSeq(cells[1], ",") {
			r.folders = append(r.folders, strings.Trim(f, " `"))
		}
		for what := range strings.SplitSeq(strings.TrimSpace(cells[3]), ", ") {
			switch {
			case what == "–":
			case what == "all":
				r.all = true
			case what == std:
				r.strict = true
			case outside[what] != "":
				r.extern = append(r.extern, outside[what])
			default:
				r.imports = append(r.imports, what)
			}
		}
		slices.Sort(r.imports)
		rows = append(rows, r)
	}
	if len(rows) < 10 {
		tb.Fatalf("the table of imports has %d rows", len(rows))
	}
	return rows
}

// owner returns the row of a package: that of the longest folder that it lies in.
func owner(rows []row, pkg string) (found row, ok bool) {
	longest := -1
	for _, r := range rows {
		for _, f := range r.folders {
			if (pkg == f || strings.HasPrefix(pkg, f+"/")) && len(f) > longest {
				found, ok, longest = r, true, len(f)
			}
		}
	}
	return found, ok
}

// folder returns the folder of a row that a package lies in.
func folder(r row, pkg string) string {
	best := ""
	for _, f := range r.folders {
		if (pkg == f || strings.HasPrefix(pkg, f+"/")) && len(f) > len(best) {
			best = f
		}
	}
	return best
}

// The table of ARCHITECTURE.md lists exactly the imports of the code, without its tests.
func TestImportsAreThoseOfTheTable(t *testing.T) {
	t.Parallel()
	rows := table(t)
	used := map[string]map[string]bool{} // of each row
	for _, r := range rows {
		used[r.name()] = map[string]bool{}
	}
	for _, p := range packages(t) {
		r, ok := owner(rows, p.name)
		if !ok {
			t.Errorf("package %s is in no row of ARCHITECTURE.md's table", p.name)
			continue
		}
		for _, i := range p.imports {
			inside, ours := strings.CutPrefix(i, module)
			if !ours {
				if r.strict && strings.Contains(strings.SplitN(i, "/", 2)[0], ".") && !slices.Contains(r.extern, i) {
					t.Errorf("%s imports %s; the table allows the %s only", p.name, i, std)
				}
				continue
			}
			target, ok := owner(rows, inside)
			if !ok || target.name() == r.name() {
				continue // the missing row is reported above
			}
			used[r.name()][folder(target, inside)] = true
		}
	}
	for _, r := range rows {
		if r.all {
			continue
		}
		if diff := cmp.Diff(r.imports, slices.Sorted(maps.Keys(used[r.name()]))); diff != "" && len(r.imports)+len(used[r.name()]) > 0 {
			t.Errorf("%s: the table (-) is not what the code imports (+):\n%s", r.name(), diff)
		}
	}
}

// The rules of depguard are those of the table.
func TestDepguardHasTheTable(t *testing.T) {
	t.Parallel()
	config := mustRead(t, ".golangci.yml")
	before, rest, ok := strings.Cut(config, begin)
	have, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf(".golangci.yml has lost the lines around the rules:\n%s%s", begin, end)
	}
	want := rules(table(t))
	if have == want {
		return
	}
	if *update {
		if err := os.WriteFile(filepath.Join(root, ".golangci.yml"), []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf(".golangci.yml is not what ARCHITECTURE.md's table asks for; run `go test ./internal/archtest -update`:\n%s", cmp.Diff(want, have))
}

// rules returns the rules of depguard for the table. In a pattern ** matches any part of a
// path, also none, so that a folder's own files match too. The rules serve editors and make
// lint. They allow the subfolders of an allowed folder as well;
// TestImportsAreThoseOfTheTable is stricter.
func rules(rows []row) string {
	var b strings.Builder
	for _, r := range rows {
		if r.all {
			continue
		}
		files, allow := []string{}, []string{}
		if r.strict {
			allow = append(allow, `"$gostd"`)
			allow = append(allow, r.extern...)
		}
		for _, f := range r.folders {
			files = append(files, fmt.Sprintf("%q", "**/"+f+"/**.go"))
			allow = append(allow, module+f)
			for _, other := range rows {
				for _, nested := range other.folders {
					if strings.HasPrefix(nested, f+"/") && other.name() != r.name() {
						files = append(files, fmt.Sprintf("%q", "!**/"+nested+"/**.go"))
					}
				}
			}
		}
		for _, i := range r.imports {
			allow = append(allow, module+i)
		}
		// depguard compares with one entry only, the last before the import: one that is
		// below another must not stand between that and the rest of what is below it.
		all := slices.Clone(allow)
		allow = slices.DeleteFunc(allow, func(folder string) bool {
			return slices.ContainsFunc(all, func(above string) bool { return strings.HasPrefix(folder, above+"/") })
		})
		files = append(files, `"!$test"`)
		fmt.Fprintf(&b, "        %s:\n", strings.ReplaceAll(r.name(), "/", "-"))
		mode := "lax"
		if r.strict {
			mode = "strict"
		}
		fmt.Fprintf(&b, "          list-mode: %s\n          files: [%s]\n", mode, strings.Join(files, ", "))
		if !r.strict {
			fmt.Fprintf(&b, "          deny: [{ pkg: %s, desc: \"not in ARCHITECTURE.md's table of imports\" }]\n", strings.TrimSuffix(module, "/"))
		}
		fmt.Fprintf(&b, "          allow: [%s]\n", strings.Join(allow, ", "))
	}
	return b.String()
}

type pkg struct {
	name    string
	imports []string
}

// packages lists the module's packages with what their code imports, without tests.
func packages(tb testing.TB) []pkg {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), "go", "list", "-json=ImportPath,Imports,GoFiles", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath       string
			Imports, GoFiles []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			tb.Fatal(err)
		}
		// The root holds PROTOCOL.md for cmd/mynah, and nothing else.
		if len(p.GoFiles) > 0 && p.ImportPath != strings.TrimSuffix(module, "/") {
			all = append(all, pkg{strings.TrimPrefix(p.ImportPath, module), p.Imports})
		}
	}
}

// cited finds the names of documents, with their folders if those are named.
var cited = regexp.MustCompile(`(?:[\w.-]+/)*\b[A-Z][A-Za-z.-]*\.md\b`)

// A cited document exists in the repository: in the folder of the citing file or in
// one above it.
func TestCitedDocumentsExist(t *testing.T) {
	t.Parallel()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git" || d.Name() == "data"):
			return filepath.SkipDir
		case !slices.Contains([]string{".go", ".yml", ".sql", ".sh", ".md"}, filepath.Ext(path)) && d.Name() != "Makefile":
			return nil
		}
		b, err := os.ReadFile(path) //nolint:gosec // the repository is ours
		if err != nil {
			return err
		}
		for _, name := range cited.FindAllString(string(b), -1) {
			if !existsFrom(filepath.Dir(path), name) {
				t.Errorf("%s cites %s, which is not in the repository", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func existsFrom(dir, name string) bool {
	for ; ; dir = filepath.Join(dir, "..") {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return true
		}
		if same, err := filepath.Rel(root, dir); err != nil || same == "." || strings.HasPrefix(same, "..") {
			return false
		}
	}
}

func mustRead(tb testing.TB, name string) string {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}
