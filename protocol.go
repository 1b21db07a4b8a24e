// Package mynah holds PROTOCOL.md, the contract with clients, which the server shows to
// whoever asks it.
package mynah

import _ "embed"

// Protocol is PROTOCOL.md.
//
//go:embed PROTOCOL.md
var Protocol []byte
