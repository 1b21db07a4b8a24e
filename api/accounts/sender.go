package accounts

import (
	"context"
	"time"
)

// Sender brings a one-time code to a person.
type Sender interface {
	// Send returns nil once the code was handed over. An error that wraps
	// ErrUndeliverable is final; after any other the code is tried again.
	Send(ctx context.Context, code Code) error
}

// Code is a one-time code on its way to a person.
type Code struct {
	To      string    // phone number (+E.164) or mail address
	Purpose string    // signin, link or reset
	Digits  string    // six
	Expires time.Time // when it fits no more
}
