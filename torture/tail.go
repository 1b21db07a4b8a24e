package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// damageTail kills the broker and damages the end of its newest log file, but
// only bytes about which nobody was ever told anything: when all is quiet,
// nothing that the broker says is let through any more; then the file is
// remembered; then messages are sent, and as soon as they have reached the file
// the broker is killed. What differs from what was remembered came after the
// silence began. No acknowledgement of it has reached anybody, neither publisher
// nor subscriber nor archiver, and what was held back is thrown away.
//
// The damage is what a crash of the machine does to bytes that were not synced:
// they are missing from some place on, or the last of them are garbage. The
// broker must start and have everything else. There is one exception: it may
// have synced those bytes already and have said so to somebody who did not hear
// it. Then it is right to refuse a log that lacks them, if it says why; the bytes
// are put back and it must start.
func damageTail(ctx context.Context, w *world, p *people, rnd *rand.Rand) string {
	w.quiet.Lock() // waits until all other faults have ended
	defer w.quiet.Unlock()
	p.assemble()
	defer p.dismiss()
	if !p.waitQuiet(ctx, 20*time.Second) {
		w.count.skipped.Add(1)
		return "log tail: skipped, no quiet moment"
	}
	w.broker.mu.Lock()
	defer w.broker.mu.Unlock()
	release := []func(){w.people.Hold(), w.peopleWS.Hold(), w.archiveIn.Hold()}
	before, err := newestLog(w.data)
	if err != nil {
		for _, r := range release {
			r()
		}
		w.count.skipped.Add(1)
		return fmt.Sprintf("log tail: skipped: %v", err)
	}
	p.paused.Store(false)
	deadline := time.Now().Add(3 * time.Second)
	grown := false
	for !grown && time.Now().Before(deadline) {
		// Without a pause: what was written is to be found before it is synced.
		info, err := os.Stat(before.path)
		grown = err != nil || info.Size() != int64(len(before.bytes))
	}
	if rnd.IntN(3) == 0 {
		time.Sleep(between(rnd, 0, 60*time.Millisecond)) // several writes
	}
	if err := w.broker.proc.Signal(syscall.SIGKILL); err != nil {
		w.ledger.Odd("%v", err)
	}
	<-w.broker.proc.Done()
	w.count.kills.Add(1)
	what := "nothing new in the file"
	var after *logFile
	if after, err = newestLog(w.data); err == nil && grown {
		from := 0
		if after.path == before.path {
			from = firstDifference(before.bytes, after.bytes)
		}
		if what, err = damage(after, from, rnd); err != nil {
			w.ledger.Odd("damage the log's tail: %v", err)
		}
		w.count.tails.Add(1)
	} else {
		w.count.skipped.Add(1)
	}
	for _, l := range []interface{ Reset() int }{w.people, w.peopleWS, w.archiveIn} {
		l.Reset()
	}
	for _, r := range release {
		r()
	}
	return "killed broker, log tail: " + what + w.startDamaged(after)
}

// startDamaged starts the broker after its log was damaged.
func (w *world) startDamaged(log *logFile) string {
	r, outcome := w.broker, ""
	proc, err := r.launch()
	if err != nil && log != nil && strings.Contains(err.Error(), "acknowledged") {
		outcome = "; refused, for it had been synced and acknowledged to nobody's ears, and put back"
		w.count.refused.Add(1)
		if err := os.WriteFile(log.path, log.bytes, 0o600); err != nil {
			w.ledger.Odd("restore the log's tail: %v", err)
		}
		proc, err = r.launch()
	}
	if proc != nil {
		r.proc = proc
	}
	if err != nil {
		w.ledger.Odd("the broker does not start after its log's tail was damaged: %v", err)
		if err := r.start(); err != nil {
			w.say("%v", err)
		}
	}
	return outcome
}

// logFile is a write-ahead log file and what is in it.
type logFile struct {
	path  string
	bytes []byte
}

// newestLog returns the newest *.log file below dir.
func newestLog(dir string) (*logFile, error) {
	newest := ""
	var at time.Time
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".log") {
			return nil //nolint:nilerr // files come and go while we look
		}
		info, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		// Numbers of the same width grow with the names.
		if m := info.ModTime(); m.After(at) || m.Equal(at) && path > newest {
			newest, at = path, m
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if newest == "" {
		return nil, fmt.Errorf("no log file below %s", dir)
	}
	b, err := os.ReadFile(filepath.Clean(newest))
	return &logFile{path: newest, bytes: b}, err
}

func firstDifference(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// lastWrite is how many bytes at the end are of the last record for certain.
const lastWrite = 20

// damage damages the file from an offset on.
func damage(f *logFile, from int, rnd *rand.Rand) (string, error) {
	size := len(f.bytes)
	fresh := size - from
	name := filepath.Base(f.path)
	kind := rnd.IntN(4)
	if fresh <= 0 {
		kind = 3 // there is nothing new in it: only more can come
	}
	b := bytes.Clone(f.bytes)
	what := ""
	switch kind {
	case 0:
		cut := from + rnd.IntN(fresh)
		b = b[:cut]
		what = fmt.Sprintf("%s cut from %d to %d bytes, the last %d were new", name, size, cut, fresh)
	case 1:
		// The last write only: what is before it was synced, and a broker
		// may well refuse to go on if that is damaged.
		bits := 1 + rnd.IntN(4)
		for range bits {
			i := size - 1 - rnd.IntN(min(fresh, lastWrite))
			b[i] ^= 1 << rnd.IntN(8)
		}
		what = fmt.Sprintf("%d bits flipped in the last %d of %d new bytes of %s", bits, min(fresh, lastWrite), fresh, name)
	case 2:
		cut := from + rnd.IntN(fresh)
		b = appendGarbage(b[:cut], rnd)
		what = fmt.Sprintf("%s cut from %d to %d bytes and %d of garbage added, the last %d were new", name, size, cut, len(b)-cut, fresh)
	default:
		b = appendGarbage(b, rnd)
		what = fmt.Sprintf("%d bytes of garbage added to the %d of %s", len(b)-size, size, name)
	}
	return what, os.WriteFile(f.path, b, 0o600)
}

func appendGarbage(b []byte, rnd *rand.Rand) []byte {
	for range 1 + rnd.IntN(200) {
		b = append(b, byte(rnd.IntN(256))) //nolint:gosec // a byte
	}
	return b
}
