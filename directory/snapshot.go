package directory

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"mynah/directory/changes"
)

// The cache file is magic, the SHA-256 of what follows, and a snapshot as gob. It
// is replaced as a whole; one that is damaged is logged and not used.

// magic begins a cache file. Another number is another form.
const magic = "mynah-directory-1\n"

// snapshot is what a cache file holds.
type snapshot struct {
	Database string // which one: directory.identify
	Cursor   uint64 // of the feed: everything before is in what follows
	Subjects []savedEntry[subject]
	Groups   []savedEntry[group]
}

// errDamaged is returned when the cache file is not one that was written here.
var errDamaged = errors.New("the file is damaged or of another version")

// save writes what is known to the cache file if there is anything new. It is the
// follower's, so that no change is read and not yet applied meanwhile.
func (d *Directory) save(reader *changes.Reader) {
	if d.cfg.CacheFile == "" || reader.Cursor() == 0 {
		return
	}
	s := snapshot{Database: d.database, Cursor: reader.Cursor()}
	var people, groups bool
	s.Subjects, people = d.subjects.savedEntries()
	s.Groups, groups = d.groups.savedEntries()
	if !people && !groups {
		return
	}
	if err := write(d.cfg.CacheFile, &s); err != nil {
		d.log.Warn("cannot keep what is known for an outage of PostgreSQL", "file", d.cfg.CacheFile, "error", err)
	}
}

// write replaces the file: what was there before is there until the new one is
// whole and on disk.
func write(path string, s *snapshot) (err error) {
	var content bytes.Buffer
	if err := gob.NewEncoder(&content).Encode(s); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("make its directory: %w", err)
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("make a new file: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(file.Name()))
		}
	}()
	sum := sha256.Sum256(content.Bytes())
	for _, part := range [][]byte{[]byte(magic), sum[:], content.Bytes()} {
		if _, err := file.Write(part); err != nil {
			return errors.Join(fmt.Errorf("write: %w", err), file.Close())
		}
	}
	if err := errors.Join(file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return fmt.Errorf("put the new file in place: %w", err)
	}
	return nil
}

// restore fills the cache from the file, and returns the reader that goes on where
// it ends.
func (d *Directory) restore() *changes.Reader {
	if d.cfg.CacheFile == "" {
		return &changes.Reader{}
	}
	s, err := read(d.cfg.CacheFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &changes.Reader{}
	case err != nil:
		d.log.Warn("cannot use what was kept for an outage of PostgreSQL", "file", d.cfg.CacheFile, "error", err)
		return &changes.Reader{}
	}
	d.database = s.Database
	d.subjects.restore(s.Subjects)
	d.groups.restore(s.Groups)
	d.log.Info("rights read from the cache file", "people", len(s.Subjects), "groups", len(s.Groups))
	return changes.Resume(s.Cursor)
}

func read(path string) (*snapshot, error) {
	content, err := os.ReadFile(path) //nolint:gosec // the operator's data directory
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(content, []byte(magic))
	if !ok || len(rest) < sha256.Size {
		return nil, errDamaged
	}
	if sum := sha256.Sum256(rest[sha256.Size:]); !bytes.Equal(sum[:], rest[:sha256.Size]) {
		return nil, errDamaged
	}
	var s snapshot
	if err := gob.NewDecoder(bytes.NewReader(rest[sha256.Size:])).Decode(&s); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	return &s, nil
}
