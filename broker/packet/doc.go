// Package packet checks the packets of clients before Mochi's codec decodes them. Mochi's
// codec takes the last of two values, ignores trailing bytes and panics on some truncated
// packets. One table says what each type of packet may carry; anything else ends the
// connection. It guarantees that a packet that passes is valid in form, and that Mochi's
// codec does not panic on it. Call CheckFirstByte, then the check of the packet's type with
// its body.
//
// Every error is a packets.Code: 0x81 (malformed) for a packet that cannot be
// parsed, 0x82 (protocol error) for one that can and breaks a rule (MQTT 5, 4.13.1).
package packet
