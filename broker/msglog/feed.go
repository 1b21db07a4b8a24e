package msglog

import (
	"context"
	"slices"
	"sync"
)

const (
	// feedBuffer is how many entries the log may be ahead of a follower.
	feedBuffer = 16
	// catchUpBatch is how many messages are read at a time for a follower that starts
	// further back. A follower that starts no further back than that misses no outcome.
	catchUpBatch = 512
)

// Feed is the stream of committed entries, in their order. The log waits for its
// followers: it is no more than a few entries ahead. Whoever may lag behind reads the log
// from a cursor instead (Reader.Read).
type Feed struct {
	// C has the committed entries. It is closed when the log is closed, or when Err
	// says why there are no more.
	C <-chan *Committed

	out      chan *Committed
	feeds    *feeds
	skipUpTo uint64 // entries with messages up to here are not sent: they were read from the log

	once sync.Once
	stop chan struct{} // closed by Close

	mu  sync.Mutex
	err error
}

// Err returns why C was closed; ErrClosed if the log was closed.
func (f *Feed) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Close ends following. It is harmless to repeat. C is not closed by it.
func (f *Feed) Close() {
	f.once.Do(func() {
		close(f.stop)
		f.feeds.remove(f)
	})
}

// end closes C. Only the goroutine that sends may call it.
func (f *Feed) end(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
	close(f.out)
}

// send sends an entry to the follower and waits for it if the buffer is full. It returns
// false when the feed or the log is closed.
func (f *Feed) send(c *Committed) bool {
	if newest := c.newest(); newest != 0 && newest <= f.skipUpTo {
		return true // it was among what was read
	}
	select {
	case f.out <- c:
		return true
	default:
	}
	select {
	case f.out <- c:
		return true
	case <-f.stop:
	case <-f.feeds.reader.life.stop:
	}
	return false
}

// feeds are the feeds of a log.
type feeds struct {
	reader *reader

	mu    sync.Mutex // guards what follows
	ended bool
	all   []*Feed // replaced, never changed
}

func (fs *feeds) add(f *Feed) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.ended {
		return ErrClosed
	}
	fs.all = append(slices.Clip(fs.all), f)
	return nil
}

func (fs *feeds) remove(f *Feed) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.all = slices.DeleteFunc(slices.Clone(fs.all), func(other *Feed) bool { return other == f })
}

func (fs *feeds) list() []*Feed {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.all
}

// send sends an entry to all followers. Only the committer calls it.
func (fs *feeds) send(c *Committed) {
	for _, f := range fs.list() {
		if !f.send(c) {
			fs.remove(f)
			f.end(ErrClosed)
		}
	}
}

// end ends all feeds, and those to come.
func (fs *feeds) end() {
	fs.mu.Lock()
	fs.ended = true
	all := fs.all
	fs.all = nil
	fs.mu.Unlock()
	for _, f := range all {
		f.end(ErrClosed)
	}
}

// Follow returns the feed of committed entries after a message. See Log.
func (l *Pebble) Follow(after uint64) (*Feed, error) { return l.feeds.follow(after) }

func (fs *feeds) follow(after uint64) (*Feed, error) {
	if err := fs.reader.life.beginCall(); err != nil {
		return nil, err
	}
	defer fs.reader.life.endCall()
	f := newFeed(fs)
	last := fs.reader.bounds.durable.Load()
	if after >= last {
		// An entry up to there may be committed and not sent yet: it is skipped.
		f.skipUpTo = last
		return f, fs.add(f)
	}
	var live *Feed
	if last-after <= catchUpBatch {
		live = newFeed(fs)
		if err := fs.add(live); err != nil {
			return nil, err
		}
	}
	fs.reader.life.background.Add(1)
	go f.run(after, live)
	return f, nil
}

func newFeed(fs *feeds) *Feed {
	c := make(chan *Committed, feedBuffer)
	return &Feed{C: c, out: c, feeds: fs, stop: make(chan struct{})}
}

// run sends the messages that are in the log after the given seq, and then the entries
// that are committed, which it gets from live. If live is nil, it makes that feed when it
// has nearly caught up.
func (f *Feed) run(after uint64, live *Feed) {
	defer f.feeds.reader.life.background.Done()
	f.end(f.catchUpAndFollow(after, live))
}

func (f *Feed) catchUpAndFollow(after uint64, live *Feed) error {
	for live == nil {
		_, last := f.feeds.reader.Bounds()
		if last >= after && last-after > catchUpBatch {
			var err error
			if after, err = f.read(after, after+catchUpBatch); err != nil {
				return err
			}
			continue
		}
		live = newFeed(f.feeds)
		if err := f.feeds.add(live); err != nil {
			return err
		}
	}
	defer live.Close()
	// Some of the messages that are read here are in entries of live as well.
	_, last := f.feeds.reader.Bounds()
	if _, err := f.read(after, last); err != nil {
		return err
	}
	f.skipUpTo = last
	for {
		select {
		case c, ok := <-live.C:
			if !ok {
				return live.Err()
			}
			if !f.send(c) {
				return ErrClosed
			}
		case <-f.stop:
			return ErrClosed
		case <-f.feeds.reader.life.stop:
			return ErrClosed
		}
	}
}

// read sends the messages after one, up to and including another, a few at a time. It
// returns where it got to.
func (f *Feed) read(after, upto uint64) (uint64, error) {
	for {
		first, _ := f.feeds.reader.Bounds()
		if after = max(after, first-1); after >= upto {
			return after, nil
		}
		end := min(upto, after+catchUpBatch)
		var recs []*Record
		err := f.feeds.reader.Read(context.Background(), after, end, func(r *Record) bool {
			recs = append(recs, r)
			return true
		})
		if len(recs) > 0 {
			c := &Committed{Entry: &Entry{Records: recs}, Outcomes: make([]Outcome, len(recs))} // all Stored
			if !f.send(c) {
				return after, ErrClosed
			}
		}
		if err != nil {
			return after, err
		}
		after = end // also if they were forgotten meanwhile
	}
}
