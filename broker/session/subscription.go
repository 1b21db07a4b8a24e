package session

import "strings"

// Subscription is one filter of a session with its options (MQTT 5, 3.8.3.1).
type Subscription struct {
	Filter     string `json:"filter"`
	QoS        byte   `json:"qos"`
	NoLocal    bool   `json:"no_local,omitempty"`
	Identifier int    `json:"id,omitempty"` // 0 for none
	// RetainAsPublished and RetainHandling matter to plain topics only.
	RetainAsPublished bool `json:"rap,omitempty"`
	RetainHandling    byte `json:"rh,omitempty"`
}

// IsChatFilter reports whether a subscription's filter is served from the log or by
// signals, and is none outside the chat.
func IsChatFilter(filter string) bool {
	return strings.HasPrefix(filter, "user/") || strings.HasPrefix(filter, "group/")
}
