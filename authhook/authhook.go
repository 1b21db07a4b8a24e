// Package authhook authenticates clients and authorises what they do. It
// verifies tokens, derives rights from their claims and from a directory of
// groups and blocks, and adds both to Mochi as a hook. Make a [Verifier], a
// [Policy] and a [Hook].
//
// It guarantees:
//
//   - A token is accepted only if a configured key signed it with an algorithm
//     that the key itself stands for. The token's header never chooses.
//   - An [Identity] comes only from such a token, so its subject is who it says.
//     The subjects of the server's own parts go with their roles alone.
//   - A session belongs to (subject, client id): [Hook] puts the subject in
//     front of the client id before Mochi looks a session up.
//   - No claim opens a chat topic, $SYS or another reserved topic to plain MQTT:
//     an acl speaks only about topics outside of them.
//   - A connection does not outlive its token's expiry or its revocation.
//   - No token and no part of one is ever logged or put into an error.
package authhook

import (
	"context"
	"time"
)

// Role is the role of a token's holder. It decides the rights, see
// PROTOCOL.md.
type Role string

// The roles of PROTOCOL.md.
const (
	RoleUser     Role = "user"
	RoleDevice   Role = "device"
	RoleService  Role = "service"
	RoleArchiver Role = "archiver"
	RoleAdmin    Role = "admin"
)

// The subjects of the server's own parts. A token of theirs is refused unless its
// role is the part's: a session belongs to (subject, client id), so whoever else
// had the archiver's subject could take its session over, and with it the place
// up to which the log is archived; and what system writes is taken for the
// server's word. The API lets nobody have these ids.
const (
	SubjectArchiver = "archiver" // with RoleArchiver
	SubjectSystem   = "system"   // with RoleService or RoleAdmin; who notices come from
)

// ownRoles are the roles that the server's own subjects may have.
var ownRoles = map[string][]Role{
	SubjectArchiver: {RoleArchiver},
	SubjectSystem:   {RoleService, RoleAdmin},
}

// Identity is the content of a verified token. It is immutable.
type Identity struct {
	Subject string    // sub: the id
	Role    Role      // role, RoleUser if absent
	Groups  []string  // groups: member of these without any database
	Pub     []string  // acl.pub: topic filters besides the chat topics
	Sub     []string  // acl.sub
	Issued  time.Time // iat, or the zero time
	Expires time.Time // exp
	TokenID string    // jti, or ""
	Session string    // sid: the signed-in session (device) that the API issued it for, or ""
	Key     string    // the id of the API's own key that signed the token, or ""; a KeyBinder says so
}

// Directory knows groups, blocks and disabled accounts. Every method is called
// on the publish path and answers from memory; what it cannot know without
// waiting it looks up within the context's deadline. Errors are *chat.Error.
type Directory interface {
	// Groups returns the ids of the groups that the subject is a member of.
	Groups(ctx context.Context, subject string) ([]string, error)
	// MayWrite returns nil if from may write to the user to.
	MayWrite(ctx context.Context, from, to string) error
	// MaySpeak returns nil if subject is a member of the group and may speak.
	// member says that its token makes it one whatever the database says of
	// its membership; bans and mutes hold all the same. The code tells which:
	// chat.CodeNotMember for one who is not in the group or is banned from it
	// (it may not read there either), any other for one who may only not speak.
	MaySpeak(ctx context.Context, subject, group string, member bool) error
	// MaySee returns nil if viewer may see whether the user id is online.
	MaySee(ctx context.Context, viewer, id string) error
	// MayConnect returns nil if the token's holder may be connected: the
	// account exists or is not known, is not disabled, the token not revoked.
	MayConnect(ctx context.Context, id *Identity) error
	// JoinBySubscribing makes the subject a member of an open room and
	// reports whether it is one now.
	JoinBySubscribing(ctx context.Context, subject, group string) (bool, error)
	// Watch calls fn for every change after the call, one at a time, until
	// stop is called. A change that may have been missed is reported as
	// ChangeAll.
	Watch(fn func(Change)) (stop func())
}

// ChangeKind says what changed in a Directory.
type ChangeKind uint8

// The kinds of change.
const (
	ChangeAll      ChangeKind = iota // anything may have changed: check every connected client again
	ChangeJoined                     // Subject is now a member of Group
	ChangeLeft                       // Subject is no longer a member of Group
	ChangeRights                     // what Subject may do has changed (mutes, blocks): forget what was remembered; empty Subject: everybody's
	ChangeDisabled                   // Subject's connections must end (those of Session only, if it is not empty)
)

// Change is one change in a Directory.
type Change struct {
	Kind    ChangeKind
	Subject string
	Group   string
	Session string
}
