package msglog

import (
	"errors"
	"math"

	"github.com/cockroachdb/pebble/v2"
)

// indexAt decodes the index entry that the iterator is at.
func indexAt(it *pebble.Iterator) (indexEntry, error) {
	seq, err := keySeq(it.Key())
	if err != nil {
		return indexEntry{}, err
	}
	value, err := it.ValueAndErr()
	if err != nil {
		return indexEntry{}, err
	}
	return decodeIndex(seq, value)
}

// indexBefore returns the newest entry of the sparse index below seq, the zero
// one if there is none.
func (d *database) indexBefore(seq uint64) (e indexEntry, err error) {
	it, err := d.newIter([]byte(prefixIndex), indexKey(nil, seq))
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.Last() {
		return e, it.Error()
	}
	return indexAt(it)
}

// lastIndex returns the newest entry of the sparse index.
func (d *database) lastIndex() (indexEntry, error) { return d.indexBefore(math.MaxUint64) }
