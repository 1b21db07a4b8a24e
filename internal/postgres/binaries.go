package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ErrNotInstalled is returned when no PostgreSQL server is found on the machine.
var ErrNotInstalled = errors.New("no PostgreSQL server is installed: apt-get install postgresql (or your system's equivalent), or give --database-url to use a server that runs elsewhere")

// debianBins is where Debian and Ubuntu put the servers: outside PATH, a folder
// for each major version.
const debianBins = "/usr/lib/postgresql/*/bin"

// binaries is a folder with a PostgreSQL server's programs.
type binaries struct {
	dir   string
	major string // "15", as in a cluster's PG_VERSION
}

func (b binaries) path(program string) string { return filepath.Join(b.dir, program) }

// findBinaries returns the newest server found in explicit (if not empty), PATH,
// pg_config's folder or Debian's folders. If major is not empty only a server of
// that major version will do, since no other can read the cluster.
func findBinaries(ctx context.Context, explicit, major string) (binaries, error) {
	var found []binaries
	for _, dir := range candidates(ctx, explicit) {
		if !isProgram(filepath.Join(dir, "postgres")) || !isProgram(filepath.Join(dir, "initdb")) {
			continue
		}
		version, err := serverMajor(ctx, dir)
		if err != nil {
			return binaries{}, err
		}
		if version == major {
			return binaries{dir, version}, nil
		}
		found = append(found, binaries{dir, version})
	}
	switch {
	case len(found) == 0:
		return binaries{}, ErrNotInstalled
	case major != "":
		return binaries{}, fmt.Errorf("the database was made by PostgreSQL %s, but only version %s is installed: "+
			"install PostgreSQL %s (apt-get install postgresql-%s), or upgrade the cluster with pg_upgrade",
			major, found[0].major, major, major)
	}
	return slices.MaxFunc(found, func(a, b binaries) int { return majorNumber(a.major) - majorNumber(b.major) }), nil
}

// candidates returns the folders to look into.
func candidates(ctx context.Context, explicit string) []string {
	if explicit != "" {
		return []string{explicit}
	}
	var dirs []string
	if path, err := exec.LookPath("postgres"); err == nil {
		// Resolves the link, so that the programs in the real folder are
		// found.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		dirs = append(dirs, filepath.Dir(path))
	}
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	debian, err := filepath.Glob(debianBins)
	if err != nil {
		panic(err) // the pattern is a constant
	}
	dirs = append(dirs, debian...)
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// serverMajor asks the server in dir for its major version.
func serverMajor(ctx context.Context, dir string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", filepath.Join(dir, "postgres"), err)
	}
	// postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
	fields := strings.Fields(string(out))
	if len(fields) < 3 {
		return "", fmt.Errorf("%s --version says %q", filepath.Join(dir, "postgres"), out)
	}
	major, _, _ := strings.Cut(fields[2], ".")
	return major, nil
}

// majorNumber parses a major version. Of "17beta1" it takes the leading digits.
func majorNumber(major string) int {
	digits := strings.IndexFunc(major, func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(major)
	}
	n, _ := strconv.Atoi(major[:digits]) // 0 without digits
	return n
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
