// Package state is what the broker keeps beside its message log: sessions and their
// positions, retained messages, and when people were last seen. It is one small ordered
// key-value store. What is behind the interface decides how a change is made durable; a
// change can also be part of an entry of the log, and is then made together with what else
// the entry does, on every machine that follows the log.
package state

// Op is one change.
type Op struct {
	Key    string
	Value  []byte // ignored if Delete
	Delete bool
	Prefix bool // with Delete: everything whose key begins with Key
}

// Store is an ordered key-value store. Its methods may be called by any goroutine.
type Store interface {
	// Apply makes all changes at once, in order. With sync it returns when they are
	// durable; without, they are durable after the next call with sync, the next
	// entry of the log that shares the disk, or about a second, whichever is first.
	Apply(ops []Op, sync bool) error
	// Scan calls fn for each key with the prefix, in byte order, until fn returns
	// false. fn may keep neither key's nor value's bytes.
	Scan(prefix string, fn func(key string, value []byte) bool) error
}
