package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// Guards against damage to acknowledged bytes. Everything before the first new
// byte stays unchanged.
func TestDamageLeavesWhatIsOld(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // repeatable
	old := bytes.Repeat([]byte("old"), 100)
	changed := 0
	for i := range 400 {
		fresh := bytes.Repeat([]byte("new!"), i%30)
		path := filepath.Join(t.TempDir(), "000001.log")
		all := append(bytes.Clone(old), fresh...)
		if err := os.WriteFile(path, all, 0o600); err != nil {
			t.Fatal(err)
		}
		log, err := newestLog(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		from := firstDifference(old, log.bytes)
		if from != len(old) {
			t.Fatalf("new bytes begin at %d, want %d", from, len(old))
		}
		what, err := damage(log, from, rnd)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path) //nolint:gosec // a test's file
		if err != nil {
			t.Fatal(err)
		}
		if len(b) < len(old) || !bytes.Equal(b[:len(old)], old) {
			t.Fatalf("%s: the old bytes were damaged", what)
		}
		if !bytes.Equal(b, all) {
			changed++
		}
		if !bytes.Equal(log.bytes, all) {
			t.Fatalf("%s: what is to be put back was damaged as well", what)
		}
	}
	if changed < 350 {
		t.Errorf("only %d of 400 files were damaged", changed)
	}
}

// In a preallocated or recycled file the size does not show where the new
// bytes begin.
func TestFirstDifference(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "abc", 3}, {"abc", "abcd", 3}, {"abcd", "abc", 3}, {"abcxxx", "abcdxx", 3}} {
		if got := firstDifference([]byte(c.a), []byte(c.b)); got != c.want {
			t.Errorf("firstDifference(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
