package msglog

import (
	"context"
	"errors"
	"math"
	"time"
)

// Retention says how much of the log is kept. The zero value of a field means
// without bound.
type Retention struct {
	MaxAge   time.Duration // messages older than this are forgotten
	MaxBytes uint64        // the oldest are forgotten when more than this was appended; to about a megabyte
}

// Expired returns the newest seq that a retention does not want kept, 0 for none.
func (r *reader) Expired(ctx context.Context, keep Retention) (upto uint64, err error) {
	if keep.MaxAge <= 0 && keep.MaxBytes == 0 {
		return 0, nil
	}
	if err := r.life.beginCall(); err != nil {
		return 0, err
	}
	defer r.life.endCall()
	newest, err := r.db.lastIndex()
	if err != nil {
		return 0, err
	}
	cutoff := int64(math.MinInt64)
	if keep.MaxAge > 0 {
		cutoff = r.db.opts.Now().Add(-keep.MaxAge).UnixMilli()
	}
	it, err := r.db.newPrefixIter(prefixIndex)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if err := r.life.check(ctx); err != nil {
			return 0, err
		}
		e, err := indexAt(it)
		if err != nil {
			return 0, err
		}
		tooMany := keep.MaxBytes > 0 && newest.bytes-e.bytes >= keep.MaxBytes
		if e.ts > cutoff && !tooMany {
			break
		}
		upto = e.seq
	}
	if err := it.Error(); err != nil {
		return 0, err
	}
	if keep.MaxAge <= 0 {
		return upto, nil
	}
	// The index is sparse: look at the messages themselves up to its next entry.
	_, last := r.Bounds()
	err = r.Read(ctx, upto, last, func(rec *Record) bool {
		if rec.TS > cutoff {
			return false
		}
		upto = rec.Seq
		return true
	})
	if _, corrupt := errors.AsType[*CorruptError](err); corrupt {
		err = nil // Read's callers are told; here it only ends the search
	}
	return upto, err
}
