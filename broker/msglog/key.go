package msglog

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// The key space. Every key that ends in a seq ends in eight bytes, big endian, so
// that byte order is log order. DESIGN.md describes the values.
const (
	prefixBlock   = "m/" // m/<last seq of the block>: messages
	prefixPosting = "t/" // t/<topic>␀<last seq of the block>: which of them are on the topic
	prefixDevice  = "p/" // p/<from>␀<client>␀<last seq of the block>: packet ids and digests
	prefixMid     = "d/" // d/<from>␀<mid>: seq and digest
	prefixEnd     = "e/" // e/<topic>: the newest trimmed seq of the topic
	prefixIndex   = "i/" // i/<seq>: bytes appended and time up to here, sparse
	prefixStore   = "s/" // s/<key>: the state store
	prefixOrigin  = "o/" // o/<origin>: number of its newest entry

	keyFormat = "meta/format" // version of this key space
	keyFirst  = "meta/first"  // oldest seq that is on disk

	// keyDecided is what the entries so far have led to: see decided.
	keyDecided = "meta/decided"

	keyChanges = "meta/store" // how many changes were made to the store with sync

	// keyEndOfLost is the last of the seqs that were given up by Repair: no
	// message has one of them, nor ever will.
	keyEndOfLost = "meta/lost"
)

// A string inside a key ends in 0x00 0x01, and a 0x00 in it becomes 0x00 0xff:
// client ids may hold any byte, and no key may be a prefix of another's.
const (
	keyEnd    = "\x00\x01"
	keyEscape = "\x00\xff"
)

var errBadKey = errors.New("malformed key")

// appendString appends s to the key so that byte order is kept and the end is
// unambiguous.
func appendString[S ~string | ~[]byte](key []byte, s S) []byte {
	for i := range len(s) {
		if s[i] == 0 {
			return appendEscaped(key, s)
		}
	}
	key = append(key, s...)
	return append(key, keyEnd...)
}

func appendEscaped[S ~string | ~[]byte](key []byte, s S) []byte {
	for i := range len(s) {
		if s[i] == 0 {
			key = append(key, keyEscape...)
		} else {
			key = append(key, s[i])
		}
	}
	return append(key, keyEnd...)
}

// cutString takes a string that appendString has written off the front of a key.
func cutString(key []byte) (s string, rest []byte, err error) {
	raw, rest, ok := bytes.Cut(key, []byte(keyEnd))
	if !ok {
		return "", nil, errBadKey
	}
	if bytes.IndexByte(raw, 0) >= 0 {
		raw = bytes.ReplaceAll(raw, []byte(keyEscape), []byte{0})
	}
	return string(raw), rest, nil
}

func appendSeq(key []byte, seq uint64) []byte { return binary.BigEndian.AppendUint64(key, seq) }

// keySeq returns the seq that the key ends in.
func keySeq(key []byte) (uint64, error) {
	if len(key) < 8 {
		return 0, errBadKey
	}
	return binary.BigEndian.Uint64(key[len(key)-8:]), nil
}

func blockKey(key []byte, last uint64) []byte {
	return appendSeq(append(key[:0], prefixBlock...), last)
}

func postingKey[S ~string | ~[]byte](key []byte, topic S, last uint64) []byte {
	return appendSeq(appendString(append(key[:0], prefixPosting...), topic), last)
}

func deviceKey(key []byte, from, client string, last uint64) []byte {
	return appendSeq(appendString(appendString(append(key[:0], prefixDevice...), from), client), last)
}

func midKey(key []byte, from, mid string) []byte {
	return appendString(appendString(append(key[:0], prefixMid...), from), mid)
}

func endKey[S ~string | ~[]byte](key []byte, topic S) []byte {
	return append(append(key[:0], prefixEnd...), topic...)
}

func indexKey(key []byte, seq uint64) []byte {
	return appendSeq(append(key[:0], prefixIndex...), seq)
}

// prefixEndKey returns the first key behind all that begin with prefix.
func prefixEndKey(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil // prefix is all 0xff: there is no end
}
