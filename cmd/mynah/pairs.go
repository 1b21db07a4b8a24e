package main

import (
	"errors"
	"strings"

	"github.com/alecthomas/kong"

	"mynah/authhook"
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

// Claims are the names of claims in the tokens of others.
type Claims authhook.ClaimNames

// Decode reads NAME=CLAIM,NAME=CLAIM, or with ; between, as the file of --config has it.
// A flag that is given again adds to what it has.
func (c *Claims) Decode(ctx *kong.DecodeContext) error {
	text, ok := ctx.Scan.Pop().Value.(string)
	if !ok {
		return errClaims
	}
	fields := map[string]*string{"sub": &c.Subject, "groups": &c.Groups, "role": &c.Role, "acl": &c.ACL}
	for _, list := range kong.SplitEscaped(text, pairsSeparator) {
		for _, pair := range kong.SplitEscaped(list, ',') {
			name, claim, _ := strings.Cut(pair, "=")
			field, known := fields[strings.TrimSpace(name)]
			if claim = strings.TrimSpace(claim); !known || claim == "" {
				return errClaims
			}
			*field = claim
		}
	}
	return nil
}

var errClaims = errors.New("want sub=CLAIM,groups=CLAIM,role=CLAIM,acl=CLAIM, or some of them")

var errPairs = errors.New("want NAME=SECRET, with the provider's name from --oidc; more than one are parted by ;")
