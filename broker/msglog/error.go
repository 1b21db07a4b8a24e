package msglog

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

var (
	// ErrFull is returned by Propose and Open when the disk has no room left.
	ErrFull = errors.New("the message log's disk is full")
	// ErrCorrupt is returned when what is stored does not match its checksum.
	// The error that wraps it is a *CorruptError if it is known which messages
	// are concerned.
	ErrCorrupt = errors.New("message log is corrupt")
	// ErrInUse is returned by Open when another process has the log open.
	ErrInUse = errors.New("the data directory is in use by another process")
	// ErrNewer is returned by Open when the log was written by a newer version.
	ErrNewer = errors.New("the message log was written by a newer version of mynah")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("message log is closed")
	// ErrFailed is returned after a write to the disk went wrong. It is not known
	// how much of what was being written is there, so nothing more is written
	// until the log has been opened again.
	ErrFailed = errors.New("message log has failed and must be opened again")
)

// OutOfRoom reports whether an error that is ErrFailed came from a full disk: one of
// which the log recovers by being opened again when there is room.
func OutOfRoom(err error) bool {
	if err == nil {
		return false
	}
	// What Pebble only logs, or panics with, has lost its chain.
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) ||
		strings.Contains(err.Error(), syscall.ENOSPC.Error()) || strings.Contains(err.Error(), syscall.EDQUOT.Error())
}

// CorruptError is returned by Read, ReadTopic and Open when messages that the
// log should hold cannot be read. All messages before First have been handed
// out; a caller that accepts the loss goes on with after = Last.
type CorruptError struct {
	First, Last uint64 // the messages concerned, both included
	Topic       string // the topic that was being read, "" for all
	Err         error  // what was found
}

// Error names the messages and what was found.
func (e *CorruptError) Error() string {
	of := ""
	if e.Topic != "" {
		of = " of " + e.Topic
	}
	return fmt.Sprintf("%v: messages %d to %d%s cannot be read: %v", ErrCorrupt, e.First, e.Last, of, e.Err)
}

// Unwrap returns ErrCorrupt and the cause.
func (e *CorruptError) Unwrap() []error { return []error{ErrCorrupt, e.Err} }
