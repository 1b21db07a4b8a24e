package msglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// headFile is a small file beside the database with the seq up to which the log is
// durable. It is written after each sync and before a commit is reported. It is not
// synced itself, so after a loss of power its seq may be too low, but never too high.
// If the log ends before that seq, acknowledged messages are missing. Without the file,
// damage at the end of the write-ahead log would look like a write that was interrupted.
type headFile struct {
	file vfs.File

	mu      sync.Mutex // guards what follows
	current head
	buf     [headSize]byte
}

// head is what the file says.
type head struct {
	seq     uint64 // newest message that is durable
	changes uint64 // newest change to the store that is durable, counted
}

const (
	headName  = "HEAD"
	headMagic = "MYNH"
	headSize  = 4 + 8 + 8 + 4
)

func headPath(fsys vfs.FS, dir string) string { return fsys.PathJoin(dir, headName) }

// readHead returns up to where the log was durable, the zero head if that is not
// known.
func readHead(fsys vfs.FS, dir string) (head, error) {
	f, err := fsys.Open(headPath(fsys, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return head{}, nil
	} else if err != nil {
		return head{}, err
	}
	var buf [headSize]byte
	_, err = io.ReadFull(f, buf[:])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil // it was being made
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return head{}, err
	}
	if string(buf[:4]) != headMagic || binary.BigEndian.Uint32(buf[20:]) != crc32.Checksum(buf[:20], castagnoli) {
		return head{}, nil // it was being made, or power was lost while it was written
	}
	return head{seq: binary.BigEndian.Uint64(buf[4:]), changes: binary.BigEndian.Uint64(buf[12:])}, nil
}

// openHead makes the file durable. From here on its bytes are there to be
// overwritten, which takes no room.
func openHead(fsys vfs.FS, dir string, end head) (*headFile, error) {
	f, err := fsys.OpenReadWrite(headPath(fsys, dir), vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	h := &headFile{file: f}
	if err := h.advance(end); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	d, err := fsys.OpenDir(dir)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), d.Sync(), d.Close()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return h, nil
}

// advance records that everything up to end is durable.
func (h *headFile) advance(end head) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current = head{seq: max(h.current.seq, end.seq), changes: max(h.current.changes, end.changes)}
	copy(h.buf[:], headMagic)
	binary.BigEndian.PutUint64(h.buf[4:], h.current.seq)
	binary.BigEndian.PutUint64(h.buf[12:], h.current.changes)
	binary.BigEndian.PutUint32(h.buf[20:], crc32.Checksum(h.buf[:20], castagnoli))
	if _, err := h.file.WriteAt(h.buf[:], 0); err != nil {
		return fmt.Errorf("write %s: %w", headName, err)
	}
	return nil
}

func (h *headFile) close() error { return h.file.Close() }

// checkEnd returns an error if acknowledged messages are missing at the end of the log. It
// changes nothing. Opening the log for writing would for good drop what comes after damage
// in the write-ahead log, so this comes first.
func (d *database) checkEnd() error {
	want, err := readHead(d.opts.FS, d.dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", headName, err)
	}
	desc, err := pebble.Peek(d.dir, d.opts.FS)
	if err != nil {
		return wrapOpenError(err)
	}
	if !desc.Exists {
		if want != (head{}) {
			return fmt.Errorf("%w: messages up to %d were stored here, but the database is gone", ErrCorrupt, want.seq)
		}
		return nil // a new log
	}
	if err := d.openReadOnly(); err != nil {
		return err
	}
	end, err := d.endOf()
	err = errors.Join(err, d.pebble.Close())
	d.pebble = nil
	if err != nil {
		return err
	}
	if end.seq < want.seq {
		return &CorruptError{First: end.seq + 1, Last: want.seq, Err: errEndMissing}
	}
	if end.changes < want.changes {
		return fmt.Errorf("%w: the last %d changes to sessions cannot be read: %w", ErrCorrupt, want.changes-end.changes, errEndMissing)
	}
	return nil
}

// endOf returns where the database ends, the zero head if the log was not made
// yet. It returns ErrNewer for a format that it does not know.
func (d *database) endOf() (head, error) {
	version, ok, err := d.getUint(keyFormat)
	if err != nil || !ok {
		return head{}, err
	}
	if err := checkVersion(version, formatVersion); err != nil {
		return head{}, err
	}
	_, _, last, err := d.readBounds()
	if err != nil {
		return head{}, err
	}
	changes, _, err := d.getUint(keyChanges)
	return head{seq: last, changes: changes}, err
}

var errEndMissing = errors.New("the log ends before what was acknowledged; " +
	"restore the directory from a copy, or give them up with mynah log --repair")
