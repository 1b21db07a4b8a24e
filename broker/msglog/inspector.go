package msglog

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Inspector looks at a log without changing it: a stopped broker's, or a running
// one's as it was at the moment of Inspect. It must be closed.
type Inspector struct {
	log  *reader // on the snapshot
	path string
	info Info
}

// Info is a summary of a log.
type Info struct {
	Dir       string
	InUseBy   int    // id of the process that has the log open, 0 for none
	Format    uint64 // version of the format; FormatVersion is this release's
	First     uint64 // seq of the oldest message that is kept
	Last      uint64 // seq of the newest; First-1 for an empty log
	Durable   uint64 // seq up to which the log was durable when it was last written to, 0 if unknown
	Messages  uint64 // how many are kept
	Oldest    time.Time
	Newest    time.Time
	Bytes     uint64 // appended since the oldest message, to about a megabyte
	DiskBytes uint64 // taken by all files
	DiskFree  uint64 // left on the disk
}

// FormatVersion is the version of the log's format that this release writes.
const FormatVersion = formatVersion

// Inspect looks at the log in the directory. It makes a directory inside of it
// for hard links to its files, so it needs the right to write there, and takes no
// lock, so a broker may run, start and stop meanwhile. A log of a newer version
// is refused with ErrNewer, one that cannot be opened with ErrCorrupt.
func Inspect(ctx context.Context, dir string) (*Inspector, error) {
	pid, err := lockHolder(dir)
	if err != nil {
		return nil, fmt.Errorf("look at message log: %w", err)
	}
	durable, err := readHead(vfs.Default, dir)
	if err != nil {
		return nil, fmt.Errorf("look at message log: %w", err)
	}
	path, err := snapshot(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("look at message log: %w", err)
	}
	i := &Inspector{path: path, info: Info{Dir: dir, InUseBy: pid, Durable: durable.seq}}
	if err := i.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("look at message log in %s: %w", dir, err), i.Close())
	}
	return i, nil
}

func (i *Inspector) open(ctx context.Context) error {
	opts, err := Options{}.withDefaults()
	if err != nil {
		return err
	}
	db := newDatabase(i.path, opts)
	if err := db.openReadOnly(); err != nil {
		return err
	}
	i.log = newReader(db)
	version, ok, err := db.getUint(keyFormat)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: no %s", ErrCorrupt, keyFormat)
	}
	i.info.Format = version
	if err := checkVersion(version, formatVersion); err != nil {
		return err
	}
	_, first, last, err := db.readBounds()
	if err != nil {
		return err
	}
	i.log.bounds.set(first, first, last)
	i.info.First, i.info.Last, i.info.Messages = first, last, last-first+1
	return i.fillInfo(ctx)
}

// fillInfo sets the sizes and times of info.
func (i *Inspector) fillInfo(ctx context.Context) error {
	base, err := i.log.db.indexBefore(i.info.First)
	if err != nil {
		return err
	}
	newest, err := i.log.db.lastIndex()
	if err != nil {
		return err
	}
	i.info.Bytes = newest.bytes - base.bytes
	for _, at := range []struct {
		after uint64
		to    *time.Time
	}{{i.info.First - 1, &i.info.Oldest}, {max(i.info.Last, 1) - 1, &i.info.Newest}} {
		err := i.log.Read(ctx, at.after, i.info.Last, func(r *Record) bool {
			*at.to = time.UnixMilli(r.TS)
			return false
		})
		// Damage is for Verify to report; the rest is there to be looked at.
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return err
		}
	}
	entries, err := os.ReadDir(i.info.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		// A file may be gone again.
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			i.info.DiskBytes += uint64(info.Size()) //nolint:gosec // a size
		}
	}
	if usage, err := vfs.Default.GetDiskUsage(i.info.Dir); err == nil {
		i.info.DiskFree = usage.AvailBytes
	}
	return nil
}

// Info returns a summary of the log.
func (i *Inspector) Info() Info { return i.info }

// Close removes what Inspect has made.
func (i *Inspector) Close() error {
	var err error
	if i.log != nil {
		err = i.log.db.pebble.Close()
		i.log = nil
	}
	return errors.Join(err, os.RemoveAll(i.path))
}

// Read reads messages; see Log.
func (i *Inspector) Read(ctx context.Context, after, upto uint64, fn func(*Record) bool) error {
	return i.log.Read(ctx, after, upto, fn)
}

// ReadTopic reads a topic's messages; see Log.
func (i *Inspector) ReadTopic(ctx context.Context, topic string, after, upto uint64, fn func(*Record) bool) error {
	return i.log.ReadTopic(ctx, topic, after, upto, fn)
}

// TopicTail is a delivery topic with the newest message on it.
type TopicTail struct {
	Topic string
	Seq   uint64
}

// Topics returns up to limit topics that have messages and whose names begin with
// prefix, in byte order and after the given one, which may be "". To see all, ask
// again after the last one.
func (i *Inspector) Topics(ctx context.Context, prefix, after string, limit int) (topics []TopicTail, err error) {
	it, err := i.log.db.newPrefixIter(prefixPosting + prefix)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	seek := []byte(prefixPosting)
	if after != "" {
		seek = prefixEndKey(appendString(seek, after))
	}
	for ok := it.SeekGE(seek); ok && len(topics) < limit; ok = it.SeekGE(seek) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		topic, _, err := cutString(it.Key()[len(prefixPosting):])
		if err != nil {
			return nil, err
		}
		seek = prefixEndKey(appendString([]byte(prefixPosting), topic))
		tail, err := i.log.db.readTail(topic, i.info.Last)
		if err != nil {
			return nil, err
		}
		if tail >= i.info.First {
			topics = append(topics, TopicTail{topic, tail})
		}
	}
	return topics, it.Error()
}

// Tail returns the newest n messages of a topic, or of all topics if topic is "",
// oldest first.
func (i *Inspector) Tail(ctx context.Context, topic string, n int) (recs []*Record, err error) {
	collect := func(r *Record) bool {
		recs = append(recs, r)
		return true
	}
	if topic == "" {
		after := i.info.First - 1
		if want := uint64(max(n, 0)); i.info.Messages > want { //nolint:gosec // not negative
			after = i.info.Last - want
		}
		return recs, i.log.Read(ctx, after, i.info.Last, collect)
	}
	after, err := i.topicTail(topic, n)
	if err != nil {
		return nil, err
	}
	err = i.log.ReadTopic(ctx, topic, after, i.info.Last, collect)
	return recs[max(0, len(recs)-max(n, 0)):], err
}

// topicTail returns a seq after which there are at least n messages of the topic,
// and not many more.
func (i *Inspector) topicTail(topic string, n int) (after uint64, err error) {
	prefix := appendString([]byte(prefixPosting), topic)
	it, err := i.log.db.newIter(prefix, prefixEndKey(prefix))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	after = math.MaxUint64
	for ok := it.Last(); ok && n > 0; ok = it.Prev() {
		last, err := keySeq(it.Key())
		if err != nil {
			return 0, err
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return 0, err
		}
		var seqs []uint64
		if err := decodePosting(last, value, func(s uint64) bool { seqs = append(seqs, s); return true }); err != nil {
			return 0, fmt.Errorf("%w: posting of block %d: %w", ErrCorrupt, last, err)
		}
		after = seqs[0] - 1
		n -= len(seqs)
	}
	return after, it.Error()
}

// removeSnapshots removes what killed Inspectors have left: their links keep the
// room of tables that are not needed any more.
func removeSnapshots(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, snapshotPrefix) {
			if err := fsys.RemoveAll(fsys.PathJoin(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}
