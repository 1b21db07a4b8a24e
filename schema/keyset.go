package schema

import "time"

// TimeKey is the place of a row in a list that is ordered by time.
type TimeKey struct {
	At time.Time `json:"a"`
	ID string    `json:"i"`
}
