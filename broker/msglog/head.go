package msglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// headFile is a few bytes beside the database that say up to which seq the log
// was durable: written after each sync and before anyone is told. It is not
// synced itself, so after a loss of power it may say less than the truth, but
// never more. When the log ends before it, acknowledged messages are missing:
// without it a damaged end of the write-ahead log could not be told from one
// that was being written when the process died.
type headFile struct {
	file vfs.File
	buf  [headSize]byte
}

const (
	headName  = "HEAD"
	headMagic = "MYNH"
	headSize  = 4 + 8 + 4
)

func headPath(fsys vfs.FS, dir string) string { return fsys.PathJoin(dir, headName) }

// readHead returns the seq up to which the log was durable, 0 if that is not
// known.
func readHead(fsys vfs.FS, dir string) (uint64, error) {
	f, err := fsys.Open(headPath(fsys, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	var buf [headSize]byte
	_, err = io.ReadFull(f, buf[:])
	if err := errors.Join(err, f.Close()); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, err
	}
	if string(buf[:4]) != headMagic || binary.LittleEndian.Uint32(buf[12:]) != crc32.Checksum(buf[:12], castagnoli) {
		return 0, nil // it was being made, or power was lost
	}
	return binary.BigEndian.Uint64(buf[4:]), nil
}

// openHead makes the file durable with the given seq. From here on its bytes are
// there to be overwritten, which takes no room.
func openHead(fsys vfs.FS, dir string, seq uint64) (*headFile, error) {
	f, err := fsys.OpenReadWrite(headPath(fsys, dir), vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	h := &headFile{file: f}
	if err := h.write(seq); err != nil {
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

func (h *headFile) write(seq uint64) error {
	copy(h.buf[:], headMagic)
	binary.BigEndian.PutUint64(h.buf[4:], seq)
	binary.LittleEndian.PutUint32(h.buf[12:], crc32.Checksum(h.buf[:12], castagnoli))
	_, err := h.file.WriteAt(h.buf[:], 0)
	return err
}

func (h *headFile) close() error { return h.file.Close() }

// checkEnd looks, changing nothing, whether the log that is in the directory can
// be opened without losing what was acknowledged. Opening it for writing would
// drop what comes after damage in the write-ahead log for good.
func (l *Pebble) checkEnd() error {
	head, err := readHead(l.opts.FS, l.dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", headName, err)
	}
	desc, err := pebble.Peek(l.dir, l.opts.FS)
	if err != nil {
		return openError(err)
	}
	if !desc.Exists {
		if head != 0 {
			return fmt.Errorf("%w: messages up to %d were stored here, but the database is gone", ErrCorrupt, head)
		}
		return nil // a new log
	}
	if l.db, err = l.openReadOnly(); err != nil {
		return err
	}
	last, err := l.endOf()
	err = errors.Join(err, l.db.Close())
	l.db = nil
	if err != nil {
		return err
	}
	if last < head {
		return &CorruptError{First: last + 1, Last: head, Err: errEndMissing}
	}
	return nil
}

// endOf returns the newest seq in the database, 0 if the log was not made yet. It
// returns ErrNewer for a format that it does not know.
func (l *Pebble) endOf() (uint64, error) {
	version, ok, err := l.getUint(keyFormat)
	if err != nil || !ok {
		return 0, err
	}
	if err := checkVersion(version, formatVersion); err != nil {
		return 0, err
	}
	_, last, err := l.bounds()
	return last, err
}

var errEndMissing = errors.New("the log ends before messages that were acknowledged; " +
	"restore the directory from a copy, or give them up with mynah log --repair")

// openReadOnly opens the database for looking only.
func (l *Pebble) openReadOnly() (*pebble.DB, error) {
	cache := pebble.NewCache(8 << 20)
	defer cache.Unref()
	opts := l.opts.pebble(l.pebbleLogger(), cache)
	opts.ReadOnly = true
	opts.ErrorIfNotExists = true
	// The version is what is there: looking does not migrate.
	opts.FormatMajorVersion = pebble.FormatMinSupported
	db, err := pebble.Open(l.dir, opts)
	if err != nil {
		return nil, openError(err)
	}
	return db, nil
}
