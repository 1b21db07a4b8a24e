package msglog

import "errors"

var (
	// ErrFull is returned by Append when the disk has no room left.
	ErrFull = errors.New("the message log's disk is full")
	// ErrCorrupt is returned when a stored record does not match its checksum.
	ErrCorrupt = errors.New("message log is corrupt")
	// ErrInUse is returned by Open when another process has the log open.
	ErrInUse = errors.New("the data directory is in use by another process")
	// ErrNewer is returned by Open when the log was written by a newer version.
	ErrNewer = errors.New("the message log was written by a newer version of mynah")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("message log is closed")
)
