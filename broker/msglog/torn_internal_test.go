package msglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/wal"
)

// walBlock is the size of the blocks of Pebble's write-ahead log.
const walBlock = 32 << 10

// TornRange returns the newest file of the write-ahead log of a broker that was
// killed, and the range of its bytes that may be cut off or changed without
// anything acknowledged being concerned: what a crash may leave of writes that
// were under way. The range may be empty. It is for tests that damage logs.
func TornRange(dir string) (file string, from, to int64, err error) {
	end, err := readHead(vfs.Default, dir)
	if err != nil {
		return "", 0, 0, err
	}
	logs, err := wal.Scan(wal.Dir{FS: vfs.Default, Dirname: dir})
	if err != nil {
		return "", 0, 0, err
	}
	if len(logs) == 0 {
		return "", 0, 0, fmt.Errorf("no write-ahead log in %s", dir)
	}
	newest := logs[len(logs)-1]
	_, file = newest.SegmentLocation(0)
	acked, to, err := ackedSize(newest, end)
	// Behind a later block Pebble takes a bad checksum for damage, not for a crash,
	// acknowledged or not.
	return file, max(acked, to/walBlock*walBlock), to, err
}

// ackedSize returns how many bytes of a log file hold what is durable according
// to end, and how many can be read.
func ackedSize(l wal.LogicalLog, end head) (acked, size int64, err error) {
	reader := l.OpenForRead()
	defer func() { err = errors.Join(err, reader.Close()) }()
	needed := false // the record before is acknowledged
	for {
		rec, at, err := reader.NextRecord()
		size = at.Physical
		if needed {
			acked = size
		}
		if err != nil {
			return acked, size, nil // the end, orderly or torn
		}
		repr, err := io.ReadAll(rec)
		if err != nil {
			return acked, size, nil
		}
		if needed, err = isAcked(repr, end); err != nil {
			return 0, 0, err
		}
	}
}

// isAcked reports whether a batch holds something that is durable according to
// end.
func isAcked(repr []byte, end head) (bool, error) {
	r := batchrepr.Read(repr)
	for {
		kind, key, value, ok, err := r.Next()
		if err != nil || !ok {
			return false, err
		}
		if kind != pebble.InternalKeyKindSet {
			continue
		}
		switch k := string(key); {
		case strings.HasPrefix(k, prefixBlock):
			if last, err := keySeq(key); err != nil || last <= end.seq {
				return true, err
			}
		case k == keyChanges:
			if len(value) == 8 && binary.BigEndian.Uint64(value) <= end.changes {
				return true, nil
			}
		case k == keyFormat, k == keyFirst, k == keyEndOfLost:
			return true, nil
		}
	}
}
