package outbox

// NextPacketID returns the packet id after id. Packet ids count from 1 to 65,535; 0 is
// not one (MQTT 5, 2.2.1).
func NextPacketID(id uint16) uint16 {
	if id == 0xFFFF {
		return 1
	}
	return id + 1
}

// FillPacketIDs writes consecutive packet ids into frames, the first at offsets[0].
func FillPacketIDs(frames []byte, offsets []int32, first uint16) {
	for _, at := range offsets {
		frames[at], frames[at+1] = byte(first>>8), byte(first)
		first = NextPacketID(first)
	}
}
