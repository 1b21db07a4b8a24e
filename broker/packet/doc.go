// Package packet is what is parsed and checked of MQTT beside Mochi's codec, which takes the
// last of two values, looks at no trailing byte and runs off the end of some packets. What a
// client's packet may carry, of whichever type, is in one table; whatever is not in it ends
// the connection.
//
// Every error is a packets.Code: 0x81 for a packet that cannot be taken apart as the
// specification says, 0x82 for one that can and breaks a rule (MQTT 5, 4.13.1).
package packet
