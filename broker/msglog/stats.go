package msglog

// Stats are the figures of a running log.
type Stats struct {
	First, Last uint64 // as Bounds
	Bytes       uint64 // appended since the oldest message, to about a megabyte
	DiskBytes   uint64 // taken by all files, the write-ahead log included
	DiskFree    uint64 // left on the disk at the last check; 0 if unknown
	Full        bool   // Propose refuses messages because there is no room
	Failed      error  // what ended the log's work, nil if it works
	Compactions int64  // rewrites since Open
	ReadAmp     int    // files that a look-up may have to ask; tens are too many
	CacheHits   int64  // block reads that the cache answered
	CacheMisses int64  // and those that it did not
}

// Stats returns the state of the log. It takes some microseconds.
func (l *Pebble) Stats() Stats {
	s := Stats{Full: l.db.disk.full.Load(), DiskFree: l.db.disk.free.Load(), Failed: l.db.failure.get()}
	s.First, s.Last = l.Bounds()
	if l.life.beginCall() != nil {
		return s
	}
	defer l.life.endCall()
	m := l.db.pebble.Metrics()
	s.DiskBytes = m.DiskSpaceUsage()
	s.Compactions = m.Compact.Count
	s.ReadAmp = m.ReadAmp()
	s.CacheHits, s.CacheMisses = m.BlockCache.Hits, m.BlockCache.Misses
	base, err := l.db.indexBefore(s.First)
	if err != nil {
		return s
	}
	if newest, err := l.db.lastIndex(); err == nil {
		s.Bytes = newest.bytes - base.bytes
	}
	return s
}
