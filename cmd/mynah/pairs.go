package main

import (
	"errors"
	"strings"

	"github.com/alecthomas/kong"
)

// pairsSeparator is between the pairs of a flag that takes NAME=VALUE;NAME=VALUE.
const pairsSeparator = ';'

// SecretPairs are secrets by name. It reads them itself, since kong's words for a pair
// that is none quote it.
type SecretPairs map[string]Secret

// Decode reads NAME=SECRET;NAME=SECRET. A flag that is given again adds to what it has.
func (p *SecretPairs) Decode(ctx *kong.DecodeContext) error {
	text, ok := ctx.Scan.Pop().Value.(string)
	if !ok {
		return errPairs
	}
	if *p == nil {
		*p = SecretPairs{}
	}
	for _, pair := range kong.SplitEscaped(text, pairsSeparator) {
		name, secret, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return errPairs
		}
		(*p)[name] = Secret(secret)
	}
	return nil
}

var errPairs = errors.New("want NAME=SECRET, with the provider's name from --oidc; more than one are parted by ;")
