package broker

import (
	"time"

	"mynah/chat"
)

// expiry returns when a message expires that may say so itself, own, and has come with a
// Message Expiry Interval in seconds (MQTT 5, 3.3.2.3.3). zero says that there is one and
// that it is 0, which Mochi's codec does not tell from none: the message is for whoever is
// reached at once.
func expiry(own int64, interval uint32, zero bool) int64 {
	if !zero {
		return earlier(own, interval)
	}
	if own != 0 && own <= time.Now().UnixMilli() {
		return own
	}
	return chat.AtOnce
}

// earlier returns the sooner of a message's own expiry and the one that follows from
// its Message Expiry Interval in seconds (MQTT 5, 3.3.2.3.3); 0 is never.
func earlier(expires int64, interval uint32) int64 {
	if interval == 0 {
		return expires
	}
	at := time.Now().UnixMilli() + int64(interval)*1000
	if expires == 0 {
		return at
	}
	return min(expires, at)
}
