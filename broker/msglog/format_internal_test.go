package msglog

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"mynah/chat"
)

func testOptions() Options { return Options{MemTableBytes: 1 << 20, Ballast: -1, MinFree: 1} }

func openTest(t *testing.T, dir string) *Pebble {
	t.Helper()
	l, err := Open(dir, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeTest(t *testing.T, l *Pebble) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func appendTest(t *testing.T, l *Pebble, n int) {
	t.Helper()
	recs := make([]*Record, n)
	for i := range recs {
		recs[i] = &Record{Message: chat.Message{From: "a", To: "group/g", Type: "text", Tail: []byte(`"type":"text"}`)}}
	}
	proposeTest(t, l, &Entry{Records: recs})
}

func proposeTest(t *testing.T, l *Pebble, e *Entry) *Committed {
	t.Helper()
	p, err := l.Propose(e)
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A log of a newer version is refused, and nothing in it is changed.
func TestNewerFormat(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openTest(t, dir)
	appendTest(t, l, 3)
	if err := l.db.putUint(keyFormat, formatVersion+1); err != nil {
		t.Fatal(err)
	}
	closeTest(t, l)
	for range 2 {
		if _, err := Open(dir, testOptions()); !errors.Is(err, ErrNewer) {
			t.Fatalf("opened a newer log: %v", err)
		}
		if _, err := Inspect(t.Context(), dir); !errors.Is(err, ErrNewer) {
			t.Fatalf("looked at a newer log: %v", err)
		}
	}
}

// A log of version 1, whose records have no properties, is opened and goes on.
func TestFormat1(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openTest(t, dir)
	appendTest(t, l, 3)
	if err := l.db.putUint(keyFormat, 1); err != nil {
		t.Fatal(err)
	}
	closeTest(t, l)
	in, err := Inspect(t.Context(), dir)
	if err != nil {
		t.Fatalf("looked at an older log: %v", err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	l = openTest(t, dir)
	appendTest(t, l, 1)
	if first, last := l.Bounds(); last-first != 3 {
		t.Errorf("%d to %d, want 4 messages", first, last)
	}
	if v, _, err := l.db.getUint(keyFormat); err != nil || v != formatVersion {
		t.Errorf("version %d (%v), want %d", v, err, formatVersion)
	}
	closeTest(t, l)
}

// An older log is migrated step by step, and a step that was interrupted is run
// again. The steps are the test's own.
func TestMigrate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openTest(t, dir)
	appendTest(t, l, 100)
	var ran []uint64
	interrupted := errors.New("interrupted")
	fail := true
	rename := func(from, to string) error {
		v, ok, err := l.db.getUint(from)
		if err != nil || !ok {
			return err // it was done before the interruption
		}
		b := l.db.pebble.NewBatch()
		if err := errors.Join(setUint(b, to, v), b.Delete([]byte(from), nil)); err != nil {
			return err
		}
		return l.db.pebble.Apply(b, pebble.NoSync)
	}
	steps := map[uint64]migration{
		formatVersion: func(*database) error {
			ran = append(ran, formatVersion)
			return rename(keyFirst, "meta/oldest")
		},
		formatVersion + 1: func(*database) error {
			ran = append(ran, formatVersion+1)
			err := rename("meta/oldest", keyFirst)
			if fail {
				fail = false
				return interrupted
			}
			return err
		},
	}
	if err := migrateTo(l.db, formatVersion+3, steps); !errors.Is(err, interrupted) {
		t.Fatalf("migrate: %v", err)
	}
	if err := migrateTo(l.db, formatVersion+2, steps); err != nil {
		t.Fatal(err)
	}
	if len(ran) != 3 || ran[0] != formatVersion || ran[1] != formatVersion+1 || ran[2] != formatVersion+1 {
		t.Fatalf("steps run: %v", ran)
	}
	if err := migrateTo(l.db, formatVersion+3, steps); err == nil {
		t.Fatal("migrated without a way")
	}
	if v, _, err := l.db.getUint(keyFormat); err != nil || v != formatVersion+2 {
		t.Fatalf("version %d, %v", v, err)
	}
	if err := l.db.putUint(keyFormat, formatVersion); err != nil {
		t.Fatal(err)
	}
	closeTest(t, l)
	l = openTest(t, dir)
	defer closeTest(t, l)
	if first, last := l.Bounds(); last-first != 99 {
		t.Fatalf("bounds %d, %d", first, last)
	}
}
