package msglog

import (
	"context"
	"slices"
	"sync"
)

const (
	// feedAhead is how many entries the log may be ahead of whoever follows.
	feedAhead = 16
	// catchUp is how many messages are read at a time for who follows from further back.
	// Who is no further back than that misses no outcome.
	catchUp = 512
)

// Feed is the stream of committed entries, in their order. The log waits for whoever
// follows: it is no more than a few entries ahead. What may lag behind reads the log
// from a cursor instead (Reader.Read).
type Feed struct {
	// C has the committed entries. It is closed when the log is closed, or when Err
	// says why there are no more.
	C <-chan *Committed

	c     chan *Committed
	feeds *feeds
	from  uint64 // messages up to here are not its own

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

// end closes the feed from the log's side. The goroutine that sends calls it.
func (f *Feed) end(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
	close(f.c)
}

// send hands an entry on and waits for who follows, if need be. It returns false when
// nobody does any more.
func (f *Feed) send(c *Committed) bool {
	if newest := c.newest(); newest != 0 && newest <= f.from {
		return true // it was among what was read
	}
	select {
	case f.c <- c:
		return true
	default:
	}
	select {
	case f.c <- c:
		return true
	case <-f.stop:
	case <-f.feeds.reader.life.stop:
	}
	return false
}

// feeds is the feeds of a log.
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

// send hands an entry to all that follow. The committing goroutine calls it.
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
	if err := fs.reader.life.begin(); err != nil {
		return nil, err
	}
	defer fs.reader.life.end()
	f := newFeed(fs)
	last := fs.reader.bounds.durable.Load()
	if after >= last {
		// It may be that an entry up to there is committed and not handed on yet.
		f.from = last
		return f, fs.add(f)
	}
	var live *Feed
	if last-after <= catchUp {
		live = newFeed(fs)
		if err := fs.add(live); err != nil {
			return nil, err
		}
	}
	fs.reader.life.background.Add(1)
	go f.catchUp(after, live)
	return f, nil
}

func newFeed(fs *feeds) *Feed {
	c := make(chan *Committed, feedAhead)
	return &Feed{C: c, c: c, feeds: fs, stop: make(chan struct{})}
}

// catchUp sends what is in the log after a message, and then passes on what is
// committed, which comes by live; if that is nil, from when it has nearly caught up.
func (f *Feed) catchUp(after uint64, live *Feed) {
	defer f.feeds.reader.life.background.Done()
	f.end(f.follow(after, live))
}

func (f *Feed) follow(after uint64, live *Feed) error {
	for live == nil {
		_, last := f.feeds.reader.Bounds()
		if last >= after && last-after > catchUp {
			var err error
			if after, err = f.read(after, after+catchUp); err != nil {
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
	// Some of what is read here comes by live as well.
	_, last := f.feeds.reader.Bounds()
	if _, err := f.read(after, last); err != nil {
		return err
	}
	f.from = last
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
		end := min(upto, after+catchUp)
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
