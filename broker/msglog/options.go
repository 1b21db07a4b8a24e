package msglog

import (
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Options of Open. The zero value of a field means its default.
type Options struct {
	// Logger receives what operators should know; default: nothing is logged.
	Logger *slog.Logger
	// FS is the file system; default vfs.Default. Tests inject faults here.
	FS vfs.FS
	// Now is the clock; default time.Now. It sets the first seq of a new log and
	// is what Retention.MaxAge is measured against.
	Now func() time.Time

	// Origin is the id of this broker in the entries that it proposes.
	Origin string
	// FirstSeq is the seq of the first message of a new log; default: the microsecond
	// of its making. Where several machines apply the same entries it is the same on
	// all of them.
	FirstSeq uint64

	// CacheBytes bounds the cache of blocks read from disk; default 64 MiB.
	CacheBytes int64
	// MemTableBytes is how much is collected in memory (and, with the write-ahead
	// log, on disk) before it is written out sorted; default 32 MiB. The cache and
	// up to memTables times that are the log's memory together: what the one does
	// not use the other may.
	MemTableBytes uint64
	// TailTopics bounds the cache of topic tails that is kept so that a
	// message's prev need not be looked up; default 131,072 topics, some 20 MiB.
	TailTopics int
	// MidFilterBytes bounds the filter that tells new mids from known ones without
	// looking them up; default 32 MiB, which is 22 million mids. With more it is
	// given up and each mid is looked up.
	MidFilterBytes int
	// OpenFiles is how many of its files the log keeps open, about, and never fewer
	// than 64; default 2,000. A process that may have few descriptors should give
	// less than it has: an append that cannot open a file ends the process.
	OpenFiles int
	// NoSync leaves out fsync. What is acknowledged survives the end of the
	// process but not that of the machine. For measurements only.
	NoSync bool

	// MinFree is how many bytes must be free on the disk for Propose to accept
	// messages; default 256 MiB. Below, Propose returns ErrFull. It has to cover
	// what flushing and compacting need to go on: at least twice MemTableBytes.
	MinFree uint64
	// Ballast is the size of a file that is given up when the disk is full in
	// spite of MinFree (another program was faster), so that what has been begun
	// can be finished; default 32 MiB, negative for none.
	Ballast int64
	// DiskPoll is how often free space is looked at; default one second.
	DiskPoll time.Duration

	// OnFailure is called once, from any goroutine, when the log has failed and
	// must be opened again: the broker should end. It must not call the log.
	OnFailure func(error)
}

// Defaults of Options.
const (
	DefaultCacheBytes    = 64 << 20
	DefaultMemTableBytes = 32 << 20
	DefaultMinFree       = 256 << 20
	DefaultBallast       = 32 << 20
)

func (o Options) withDefaults() (Options, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = DefaultMemTableBytes
	}
	if o.TailTopics == 0 {
		o.TailTopics = 1 << 17
	}
	if o.MidFilterBytes == 0 {
		o.MidFilterBytes = 32 << 20
	}
	if o.OpenFiles == 0 {
		o.OpenFiles = 2000
	}
	if o.MinFree == 0 {
		o.MinFree = DefaultMinFree
	}
	if o.Ballast == 0 {
		o.Ballast = DefaultBallast
	}
	if o.DiskPoll == 0 {
		o.DiskPoll = time.Second
	}
	if o.CacheBytes < 0 || o.TailTopics < 0 || o.DiskPoll < 0 {
		return o, fmt.Errorf("message log options: CacheBytes %d, TailTopics %d and DiskPoll %v must not be negative",
			o.CacheBytes, o.TailTopics, o.DiskPoll)
	}
	if o.MemTableBytes >= 4<<30 {
		return o, fmt.Errorf("message log options: MemTableBytes %d must be below 4 GiB", o.MemTableBytes)
	}
	return o, nil
}

// pebbleFormat is the version of Pebble's own files. It may be raised (Pebble
// then migrates on Open) and never lowered. FormatWALSyncChunks and above let
// Pebble tell a torn tail of the write-ahead log from damage before it.
const pebbleFormat = pebble.FormatTableFormatV6

// memTables is how many memtables there may be, one filling and the others being
// written out.
const memTables = 3

// newCache makes the cache of blocks. Pebble takes the room of memtables out of
// it: with none to spare it would cache nothing, not even the filters.
func (o Options) newCache() *pebble.Cache {
	return pebble.NewCache(o.CacheBytes + memTables*int64(o.MemTableBytes)) //nolint:gosec // below 4 GiB
}

// pebble returns the options of the database. The cache is the caller's to
// release.
func (o Options) pebble(logger pebble.Logger, cache *pebble.Cache) *pebble.Options {
	p := &pebble.Options{
		FS:                 o.FS,
		Cache:              cache,
		FormatMajorVersion: pebbleFormat,
		Logger:             logger,

		MemTableSize: o.MemTableBytes,
		// Appends stop when this many memtables wait to be written out.
		MemTableStopWritesThreshold: memTables,
		// Compaction begins early, and appends stop only when it is hopelessly
		// behind: L0 is mostly message blocks in ascending order, which do not
		// make reads slower.
		L0CompactionThreshold: 8,
		L0StopWritesThreshold: 1000,
		LBaseMaxBytes:         512 << 20,
		MaxOpenFiles:          o.OpenFiles,
		BytesPerSync:          1 << 20,
		// One compaction at a time is enough until it falls behind: the other
		// cores are the broker's.
		CompactionConcurrencyRange: func() (lower, upper int) { return 1, max(1, min(3, runtime.GOMAXPROCS(0)/2)) },
		// Range deletions come from what is forgotten; their space is to come back soon.
		FlushDelayDeleteRange: 10 * time.Second,
	}
	// Small files mean that flushes split message blocks, which are ever
	// ascending, from index entries, which are not: the former move down the
	// levels without being written again.
	p.TargetFileSizes[0] = 4 << 20
	for i := 1; i < len(p.TargetFileSizes); i++ {
		p.TargetFileSizes[i] = min(p.TargetFileSizes[i-1]*2, 32<<20)
	}
	for i := range p.Levels {
		p.Levels[i].BlockSize = 32 << 10
		p.Levels[i].IndexBlockSize = 64 << 10
		p.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		p.Levels[i].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
	}
	return p
}
