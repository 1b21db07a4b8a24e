package session

// Key names a session: a device of a subject. Two subjects may use the same client
// id without meeting.
type Key struct {
	Subject  string
	ClientID string
}

// Bytes returns the key as one string that no other key has: no MQTT string holds a zero
// byte.
func (k Key) Bytes() string { return k.Subject + "\x00" + k.ClientID }
