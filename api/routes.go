package api

import (
	"net/http"
	"time"

	"mynah/internal/ratelimit"
)

// limits are rates. Those by address are of what can be tried from outside: they keep
// one machine from trying everything at everybody; what concerns one target (an
// account, a phone number) is counted in package people, and much more strictly. Those by
// account keep somebody from flooding others with notices, which are messages in the
// log. A person does not come near them.
type limits struct {
	signIn, register, codes, refresh, links *ratelimit.Limiter // by address
	changes                                 *ratelimit.Limiter // calls that change anything, by account
	asking                                  *ratelimit.Limiter // contact requests
	askingOne                               *ratelimit.Limiter // … to one person
	inviting                                *ratelimit.Limiter // people invited to groups
	joining                                 *ratelimit.Limiter // groups joined, asked to be let into, or left
}

// newLimits scales the rates by address by Config.AddressLimits.
func newLimits(scale float64, now func() time.Time) limits {
	per := func(burst float64, period time.Duration) *ratelimit.Limiter {
		return ratelimit.New(max(int(burst*scale), 1), period, now)
	}
	return limits{
		signIn:    per(300, 15*time.Minute),
		register:  per(60, time.Hour),
		codes:     per(60, time.Hour),
		refresh:   per(3000, 15*time.Minute),
		links:     per(600, 15*time.Minute),
		changes:   ratelimit.New(1200, 15*time.Minute, now),
		asking:    ratelimit.New(120, time.Hour, now),
		askingOne: ratelimit.New(10, time.Hour, now),
		inviting:  ratelimit.New(1000, time.Hour, now),
		joining:   ratelimit.New(600, time.Hour, now),
	}
}

// routes is the table of everything that the API answers.
func (a *API) routes() {
	a.accountRoutes()
	a.socialRoutes()
	a.mux.HandleFunc("GET /.well-known/jwks.json", a.jwks)
}

func (a *API) accountRoutes() {
	l := &a.limits
	made := status(http.StatusCreated)

	call(a, "GET /v1/sign-in", "waysToSignIn", "What a sign-in page can offer", a.ways, public)
	call(a, "POST /v1/accounts", "register", "Register with a password", a.register, public, made, perAddress(l.register))
	call(a, "POST /v1/codes", "askCode", "Have a one-time code sent", a.askCode, public, status(http.StatusAccepted), perAddress(l.codes))
	call(a, "POST /v1/password/reset", "resetPassword", "Set a new password with a code", a.resetPassword, public, perAddress(l.signIn))
	call(a, "POST /v1/sessions/password", "signInPassword", "Sign in with id and password", a.signInPassword, public, made, perAddress(l.signIn))
	call(a, "POST /v1/sessions/code", "signInCode", "Sign in, or register, with a code", a.signInCode, public, made, perAddress(l.signIn))
	call(a, "POST /v1/sessions/wechat", "signInWeChat", "Sign in, or register, from a WeChat mini-program", a.signInWeChat, public, made, perAddress(l.signIn))
	call(a, "POST /v1/sessions/ticket", "signInTicket", "Sign in, or register, after OpenID Connect", a.signInTicket, public, made, perAddress(l.signIn))
	call(a, "POST /v1/sessions/refresh", "refresh", "Change a refresh token for new tokens", a.refresh, public, perAddress(l.refresh))
	call(a, "GET /v1/oidc/{provider}/start", "beginOIDC", "Send the browser here to sign in with OpenID Connect", a.beginOIDC, public, status(http.StatusFound), perAddress(l.signIn))
	call(a, "GET /v1/oidc/{provider}/callback", "finishOIDC", "Where the provider sends the browser back", a.finishOIDC, public, status(http.StatusFound), anyQuery)

	call(a, "GET /v1/me", "me", "Your own account", a.me)
	call(a, "PATCH /v1/me", "editMe", "Change your profile and settings", a.editMe)
	call(a, "DELETE /v1/me", "deleteMe", "Delete your account; your messages stay, your name goes", a.deleteMe)
	call(a, "PUT /v1/me/password", "changePassword", "Set or change your password; other devices are signed out", a.changePassword)
	call(a, "GET /v1/me/identities", "identities", "Your ways to sign in", a.identities)
	call(a, "POST /v1/me/identities/code", "linkCode", "Link a phone number or mail address", a.linkCode)
	call(a, "POST /v1/me/identities/wechat", "linkWeChat", "Link WeChat", a.linkWeChat)
	call(a, "POST /v1/me/identities/ticket", "linkTicket", "Link an OpenID Connect identity", a.linkTicket)
	call(a, "DELETE /v1/me/identities/{provider}", "unlink", "Remove a way to sign in, but not the last", a.unlink)
	call(a, "GET /v1/me/sessions", "sessions", "Your signed-in devices, newest first", a.sessions)
	call(a, "DELETE /v1/me/sessions", "endOtherSessions", "Sign out all your other devices", a.endOtherSessions)
	call(a, "DELETE /v1/me/sessions/{id}", "endSession", "Sign out a device; current is this one", a.endSession)

	call(a, "GET /v1/people/{id}", "profile", "Somebody's profile", a.profile)
	call(a, "POST /v1/people/lookup", "lookUp", "Up to 100 profiles", a.lookUp)
	call(a, "POST /v1/people/find", "find", "Find who lets strangers find them", a.find)

	call(a, "POST /v1/devices", "createDevice", "Make a device or service", a.createDevice, created)
	call(a, "GET /v1/devices", "devices", "Devices and services, by id", a.devices)
	call(a, "GET /v1/devices/{id}", "device", "A device or service", a.device)
	call(a, "PATCH /v1/devices/{id}", "renameDevice", "Rename it", a.renameDevice)
	call(a, "DELETE /v1/devices/{id}", "deleteDevice", "Delete it; its messages stay", a.deleteDevice)
	call(a, "POST /v1/devices/{id}/credential", "renewDevice", "Give it a new token or key; the one before is refused at once", a.renewDevice, created)
	call(a, "POST /v1/devices/{id}/disable", "disableDevice", "Disable it at once", a.disableDevice)
	call(a, "POST /v1/devices/{id}/enable", "enableDevice", "Enable it again", a.enableDevice)

	call(a, "POST /v1/admin/accounts/{id}/disable", "disableAccount", "Disable an account at once", a.disableAccount)
	call(a, "POST /v1/admin/accounts/{id}/enable", "enableAccount", "Enable it again", a.enableAccount)
	call(a, "POST /v1/admin/keys/rotate", "rotateKeys", "Make a new signing key", a.rotateKeys)
}

// socialRoutes are contacts, groups and rooms.
func (a *API) socialRoutes() {
	call(a, "POST /v1/contacts/requests", "askContact", "Ask somebody to become your contact", a.askContact, created, perAccount(a.limits.asking))
	call(a, "GET /v1/contacts/requests", "contactRequests", "Requests that wait for an answer, newest first", a.contactRequests)
	call(a, "POST /v1/contacts/requests/{id}/accept", "acceptContact", "Accept their request", a.acceptContact)
	call(a, "DELETE /v1/contacts/requests/{id}", "endContactRequest", "Decline their request, or withdraw yours", a.endContactRequest)
	call(a, "GET /v1/contacts", "contacts", "Your contacts, by id", a.contacts)
	call(a, "GET /v1/contacts/{id}", "contact", "A contact", a.contact)
	call(a, "PATCH /v1/contacts/{id}", "remarkContact", "Set what you call a contact", a.remarkContact)
	call(a, "DELETE /v1/contacts/{id}", "removeContact", "End being contacts, for both of you", a.removeContact)
	call(a, "GET /v1/blocks", "blocks", "Whom you have blocked, by id", a.blocks)
	call(a, "PUT /v1/blocks/{id}", "block", "Keep somebody from writing to you; they are not told", a.block)
	call(a, "DELETE /v1/blocks/{id}", "unblock", "Let them write to you again", a.unblock)
	call(a, "GET /v1/me/privacy", "privacy", "Who may write to you and see you online", a.privacy)
	call(a, "PATCH /v1/me/privacy", "setPrivacy", "Change who may write to you and see you online", a.setPrivacy)

	call(a, "POST /v1/groups", "createGroup", "Make a group or room that you own", a.createGroup, created)
	call(a, "GET /v1/me/groups", "myGroups", "The groups that you are in, by id", a.myGroups)
	call(a, "GET /v1/groups/{id}", "group", "A group", a.group)
	call(a, "PATCH /v1/groups/{id}", "editGroup", "Rename it, announce something, mute all …", a.editGroup)
	call(a, "DELETE /v1/groups/{id}", "dissolveGroup", "Dissolve it; its messages stay in the archive", a.dissolveGroup)
	call(a, "POST /v1/groups/{id}/transfer", "transferGroup", "Make a member the owner", a.transferGroup)
	call(a, "POST /v1/groups/{id}/join", "joinGroup", "Join, or ask to be let in", a.joinGroup, perAccount(a.limits.joining))
	call(a, "POST /v1/groups/{id}/leave", "leaveGroup", "Leave", a.leaveGroup, perAccount(a.limits.joining))
	call(a, "GET /v1/groups/{id}/members", "members", "Its members, by id", a.members)
	call(a, "GET /v1/groups/{id}/members/{who}", "member", "A member", a.member)
	call(a, "PATCH /v1/groups/{id}/members/{who}", "editMember", "Change role, nickname or mute of a member", a.editMember)
	call(a, "DELETE /v1/groups/{id}/members/{who}", "kickMember", "Remove a member", a.kickMember)
	call(a, "GET /v1/groups/{id}/bans", "bans", "Who is banned, by id", a.bans)
	call(a, "PUT /v1/groups/{id}/bans/{who}", "banMember", "Remove somebody and keep them out", a.banMember)
	call(a, "DELETE /v1/groups/{id}/bans/{who}", "unbanMember", "Lift a ban", a.unbanMember)
	call(a, "GET /v1/groups/{id}/requests", "joinRequests", "Who asks to be let in, oldest first", a.joinRequests)
	call(a, "POST /v1/groups/{id}/requests/{who}/approve", "approveJoin", "Let them in", a.approveJoin)
	call(a, "DELETE /v1/groups/{id}/requests/{who}", "declineJoin", "Do not let them in", a.declineJoin)
	call(a, "POST /v1/groups/{id}/invitations", "invite", "Invite people", a.invite)
	call(a, "GET /v1/groups/{id}/invitations", "invitations", "Who is invited, by id", a.invitations)
	call(a, "DELETE /v1/groups/{id}/invitations/{who}", "uninvite", "Withdraw an invitation", a.uninvite)
	call(a, "GET /v1/me/invitations", "myInvitations", "The groups that you are invited to, by id", a.myInvitations)
	call(a, "DELETE /v1/me/invitations/{id}", "declineInvitation", "Decline an invitation to a group", a.declineInvitation)
	call(a, "POST /v1/groups/{id}/links", "createLink", "Make an invitation link", a.createLink, created)
	call(a, "GET /v1/groups/{id}/links", "links", "Its valid links, by id", a.links)
	call(a, "DELETE /v1/groups/{id}/links/{link}", "revokeLink", "Revoke a link at once", a.revokeLink)
	call(a, "POST /v1/links/join", "joinByLink", "Join the group that a link is for", a.joinByLink, perAddress(a.limits.links), perAccount(a.limits.joining))
}

func (a *API) jwks(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "public, max-age=60")
	_, _ = w.Write(a.accounts.JWKS())
}
