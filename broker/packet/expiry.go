package packet

import "encoding/binary"

// ExpiresAtOnce reports whether the properties, as returned by CutProperties, have a
// Message Expiry Interval of 0 (MQTT 5, 3.3.2.3.3). Mochi's codec does not distinguish
// that from none.
func ExpiresAtOnce(props []byte) bool {
	for len(props) > 0 {
		id, value := props[0], props[1:]
		rest, err := cutProperty(id, value)
		if err != nil {
			return false
		}
		if id == MessageExpiry {
			return binary.BigEndian.Uint32(value) == 0
		}
		props = rest
	}
	return false
}

// WillExpiresAtOnce does the same for the will of a CONNECT that CheckConnect accepts.
func WillExpiresAtOnce(body []byte) bool {
	_, b, ok := cutBytes(body)
	if !ok || len(b) < 4 || b[0] != 5 || b[1]&connectWill == 0 {
		return false
	}
	_, b, err := CutProperties(Connect, b[4:])
	if err != nil {
		return false
	}
	if _, b, ok = cutBytes(b); !ok { // client id
		return false
	}
	props, _, err := CutProperties(Will, b)
	return err == nil && ExpiresAtOnce(props)
}
