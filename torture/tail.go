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
// only bytes whose acknowledgement has reached nobody. It waits until no packet
// flows, and holds back all bytes of the broker from then on. It reads the file.
// Then messages are sent, and the broker is killed as soon as they are in the
// file. Bytes that differ from the first reading were written after the replies
// were held back. So no publisher, subscriber or archiver has an acknowledgement
// of them, and the held-back bytes are discarded.
//
// The damage is what a crash of the machine does to bytes that were not synced:
// the end is missing, or the last bytes are garbage. The broker must start and
// have everything else. There is one exception: it may have synced those bytes
// already. Then it may refuse the damaged log, if its error says why. The bytes
// are restored, and it must start.
func damageTail(ctx context.Context, h *harness, p *clients, rnd *rand.Rand) string {
	h.exclusive.Lock() // waits until all other faults have ended
	defer h.exclusive.Unlock()
	p.pauseAndWakeAll()
	defer p.resumeHabits()
	if !p.waitIdle(ctx, 20*time.Second) {
		h.counts.skipped.Add(1)
		return "log tail: skipped, no quiet moment"
	}
	h.broker.mu.Lock()
	defer h.broker.mu.Unlock()
	release := []func(){h.clientLink.HoldReplies(), h.clientWSLink.HoldReplies(), h.archiverBrokerLink.HoldReplies()}
	before, err := newestLog(h.data)
	if err != nil {
		for _, r := range release {
			r()
		}
		h.counts.skipped.Add(1)
		return fmt.Sprintf("log tail: skipped: %v", err)
	}
	p.paused.Store(false)
	deadline := time.Now().Add(3 * time.Second)
	grown := false
	for !grown && time.Now().Before(deadline) {
		// Without a pause, to find the written bytes before they are synced.
		info, err := os.Stat(before.path)
		grown = err != nil || info.Size() != int64(len(before.bytes))
	}
	if rnd.IntN(3) == 0 {
		time.Sleep(randomDuration(rnd, 0, 60*time.Millisecond)) // several writes
	}
	if err := h.broker.proc.Signal(syscall.SIGKILL); err != nil {
		h.ledger.Violation("%v", err)
	}
	<-h.broker.proc.Done()
	h.counts.kills.Add(1)
	what := "nothing new in the file"
	var after *logFile
	if after, err = newestLog(h.data); err == nil && grown {
		from := 0
		if after.path == before.path {
			from = firstDifference(before.bytes, after.bytes)
		}
		if what, err = damage(after, from, rnd); err != nil {
			h.ledger.Violation("damage the log's tail: %v", err)
		}
		h.counts.tails.Add(1)
	} else {
		h.counts.skipped.Add(1)
	}
	for _, l := range []interface{ Reset() int }{h.clientLink, h.clientWSLink, h.archiverBrokerLink} {
		l.Reset()
	}
	for _, r := range release {
		r()
	}
	return "killed broker, log tail: " + what + h.startDamaged(after)
}

// startDamaged starts the broker after its log was damaged.
func (h *harness) startDamaged(log *logFile) string {
	r, outcome := h.broker, ""
	proc, err := r.launch()
	if err != nil && log != nil && strings.Contains(err.Error(), "acknowledged") {
		outcome = "; refused, for it had been synced and acknowledged to nobody's ears, and put back"
		h.counts.refused.Add(1)
		if err := os.WriteFile(log.path, log.bytes, 0o600); err != nil {
			h.ledger.Violation("restore the log's tail: %v", err)
		}
		proc, err = r.launch()
	}
	if proc != nil {
		r.proc = proc
	}
	if err != nil {
		h.ledger.Violation("the broker does not start after its log's tail was damaged: %v", err)
		if err := r.start(); err != nil {
			h.logLine("%v", err)
		}
	}
	return outcome
}

// logFile is a write-ahead log file and what is in it.
type logFile struct {
	path  string
	bytes []byte
}

// newestLog reads the newest *.log file below dir.
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

// lastRecordSize is the number of bytes at the end that certainly belong to the
// last record.
const lastRecordSize = 20

// damage damages the file from an offset on.
func damage(f *logFile, from int, rnd *rand.Rand) (string, error) {
	size := len(f.bytes)
	fresh := size - from
	name := filepath.Base(f.path)
	kind := rnd.IntN(4)
	if fresh <= 0 {
		kind = 3 // the file has no new bytes: garbage can only be appended
	}
	b := bytes.Clone(f.bytes)
	what := ""
	switch kind {
	case 0:
		cut := from + rnd.IntN(fresh)
		b = b[:cut]
		what = fmt.Sprintf("%s cut from %d to %d bytes, the last %d were new", name, size, cut, fresh)
	case 1:
		// Only the last record: the bytes before it were synced, and a broker
		// may refuse a log in which those are damaged.
		bits := 1 + rnd.IntN(4)
		for range bits {
			i := size - 1 - rnd.IntN(min(fresh, lastRecordSize))
			b[i] ^= 1 << rnd.IntN(8)
		}
		what = fmt.Sprintf("%d bits flipped in the last %d of %d new bytes of %s", bits, min(fresh, lastRecordSize), fresh, name)
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
