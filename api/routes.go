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

// routes is the table of everything that the API answers, by the family of handlers that
// answers it.
func (a *API) routes() {
	l := &a.limits
	signIn := &signInHandlers{people: a.people, cfg: &a.cfg}
	oidc := &oidcHandlers{people: a.people, cfg: &a.cfg}
	me := &meHandlers{people: a.people, now: a.cfg.Now}
	session := &sessionHandlers{people: a.people}
	profile := &profileHandlers{people: a.people}
	device := &deviceHandlers{people: a.people, groups: a.groups}
	admin := &adminHandlers{people: a.people, keys: a.cfg.Keys}
	contact := &contactHandlers{contacts: a.contacts, people: a.people, limits: l}
	group := &groupHandlers{groups: a.groups, limits: l}
	member := &memberHandlers{groups: a.groups, people: a.people, now: a.cfg.Now}
	joining := &joiningHandlers{groups: a.groups, people: a.people, limits: l}
	made := status(http.StatusCreated)

	handle(a, "GET /v1/sign-in", "waysToSignIn", "What a sign-in page can offer", signIn.ways, public)
	handle(a, "POST /v1/accounts", "register", "Register with a password", signIn.register, public, made, perAddress(l.register))
	handle(a, "POST /v1/codes", "askCode", "Have a one-time code sent", signIn.askCode, public, status(http.StatusAccepted), perAddress(l.codes))
	handle(a, "POST /v1/password/reset", "resetPassword", "Set a new password with a code", signIn.resetPassword, public, perAddress(l.signIn))
	handle(a, "POST /v1/sessions/password", "signInPassword", "Sign in with id and password", signIn.signInPassword, public, made, perAddress(l.signIn))
	handle(a, "POST /v1/sessions/code", "signInCode", "Sign in, or register, with a code", signIn.signInCode, public, made, perAddress(l.signIn))
	handle(a, "POST /v1/sessions/wechat", "signInWeChat", "Sign in, or register, from a WeChat mini-program", signIn.signInWeChat, public, made, perAddress(l.signIn))
	handle(a, "POST /v1/sessions/ticket", "signInTicket", "Sign in, or register, after OpenID Connect", signIn.signInTicket, public, made, perAddress(l.signIn))
	handle(a, "POST /v1/sessions/refresh", "refresh", "Change a refresh token for new tokens", signIn.refresh, public, perAddress(l.refresh))
	handle(a, "GET /v1/oidc/{provider}/start", "beginOIDC", "Send the browser here to sign in with OpenID Connect", oidc.beginOIDC, public, status(http.StatusFound), perAddress(l.signIn))
	handle(a, "GET /v1/oidc/{provider}/callback", "finishOIDC", "Where the provider sends the browser back", oidc.finishOIDC, public, status(http.StatusFound), anyQuery)

	handle(a, "GET /v1/me", "me", "Your own account", me.me)
	handle(a, "PATCH /v1/me", "editMe", "Change your profile and settings", me.editMe)
	handle(a, "DELETE /v1/me", "deleteMe", "Delete your account; your messages stay, your name goes", me.deleteMe)
	handle(a, "PUT /v1/me/password", "changePassword", "Set or change your password; other devices are signed out", me.changePassword)
	handle(a, "GET /v1/me/identities", "identities", "Your ways to sign in", me.identities)
	handle(a, "POST /v1/me/identities/code", "linkCode", "Link a phone number or mail address", me.linkCode)
	handle(a, "POST /v1/me/identities/wechat", "linkWeChat", "Link WeChat", me.linkWeChat)
	handle(a, "POST /v1/me/identities/ticket", "linkTicket", "Link an OpenID Connect identity", me.linkTicket)
	handle(a, "DELETE /v1/me/identities/{provider}", "unlink", "Remove a way to sign in, but not the last", me.unlink)
	handle(a, "GET /v1/me/sessions", "sessions", "Your signed-in devices, newest first", session.sessions)
	handle(a, "DELETE /v1/me/sessions", "endOtherSessions", "Sign out all your other devices", session.endOtherSessions)
	handle(a, "DELETE /v1/me/sessions/{id}", "endSession", "Sign out a device; current is this one", session.endSession)

	handle(a, "GET /v1/people/{id}", "profile", "Somebody's profile", profile.profile)
	handle(a, "POST /v1/people/lookup", "lookUp", "Up to 100 profiles", profile.lookUp)
	handle(a, "POST /v1/people/find", "find", "Find who lets strangers find them", profile.find)

	handle(a, "POST /v1/devices", "createDevice", "Make a device or service", device.createDevice, created)
	handle(a, "GET /v1/devices", "devices", "Devices and services, by id", device.devices)
	handle(a, "GET /v1/devices/{id}", "device", "A device or service", device.device)
	handle(a, "PATCH /v1/devices/{id}", "renameDevice", "Rename it", device.renameDevice)
	handle(a, "DELETE /v1/devices/{id}", "deleteDevice", "Delete it; its messages stay", device.deleteDevice)
	handle(a, "POST /v1/devices/{id}/credential", "renewDevice", "Give it a new token or key; the one before is refused at once", device.renewDevice, created)
	handle(a, "POST /v1/devices/{id}/disable", "disableDevice", "Disable it at once", device.disableDevice)
	handle(a, "POST /v1/devices/{id}/enable", "enableDevice", "Enable it again", device.enableDevice)

	handle(a, "POST /v1/admin/accounts/{id}/disable", "disableAccount", "Disable an account at once", admin.disableAccount)
	handle(a, "POST /v1/admin/accounts/{id}/enable", "enableAccount", "Enable it again", admin.enableAccount)
	handle(a, "POST /v1/admin/keys/rotate", "rotateKeys", "Make a new signing key", admin.rotateKeys)

	handle(a, "POST /v1/contacts/requests", "askContact", "Ask somebody to become your contact", contact.askContact, created, perAccount(l.asking))
	handle(a, "GET /v1/contacts/requests", "contactRequests", "Requests that wait for an answer, newest first", contact.contactRequests)
	handle(a, "POST /v1/contacts/requests/{id}/accept", "acceptContact", "Accept their request", contact.acceptContact)
	handle(a, "DELETE /v1/contacts/requests/{id}", "endContactRequest", "Decline their request, or withdraw yours", contact.endContactRequest)
	handle(a, "GET /v1/contacts", "contacts", "Your contacts, by id", contact.list)
	handle(a, "GET /v1/contacts/{id}", "contact", "A contact", contact.contact)
	handle(a, "PATCH /v1/contacts/{id}", "remarkContact", "Set what you call a contact", contact.remarkContact)
	handle(a, "DELETE /v1/contacts/{id}", "removeContact", "End being contacts, for both of you", contact.removeContact)
	handle(a, "GET /v1/blocks", "blocks", "Whom you have blocked, by id", contact.blocks)
	handle(a, "PUT /v1/blocks/{id}", "block", "Keep somebody from writing to you; they are not told", contact.block)
	handle(a, "DELETE /v1/blocks/{id}", "unblock", "Let them write to you again", contact.unblock)
	handle(a, "GET /v1/me/privacy", "privacy", "Who may write to you and see you online", contact.privacy)
	handle(a, "PATCH /v1/me/privacy", "setPrivacy", "Change who may write to you and see you online", contact.setPrivacy)

	handle(a, "POST /v1/groups", "createGroup", "Make a group or room that you own", group.createGroup, created)
	handle(a, "GET /v1/me/groups", "myGroups", "The groups that you are in, by id", group.myGroups)
	handle(a, "GET /v1/groups/{id}", "group", "A group", group.group)
	handle(a, "PATCH /v1/groups/{id}", "editGroup", "Rename it, announce something, mute all …", group.editGroup)
	handle(a, "DELETE /v1/groups/{id}", "dissolveGroup", "Dissolve it; its messages stay in the archive", group.dissolveGroup)
	handle(a, "POST /v1/groups/{id}/transfer", "transferGroup", "Make a member the owner", group.transferGroup)
	handle(a, "POST /v1/groups/{id}/join", "joinGroup", "Join, or ask to be let in", joining.joinGroup, perAccount(l.joining))
	handle(a, "POST /v1/groups/{id}/leave", "leaveGroup", "Leave", member.leaveGroup, perAccount(l.joining))
	handle(a, "GET /v1/groups/{id}/members", "members", "Its members, by id", member.members)
	handle(a, "GET /v1/groups/{id}/members/{who}", "member", "A member", member.member)
	handle(a, "PATCH /v1/groups/{id}/members/{who}", "editMember", "Change role, nickname or mute of a member", member.editMember)
	handle(a, "DELETE /v1/groups/{id}/members/{who}", "kickMember", "Remove a member", member.kickMember)
	handle(a, "GET /v1/groups/{id}/bans", "bans", "Who is banned, by id", member.bans)
	handle(a, "PUT /v1/groups/{id}/bans/{who}", "banMember", "Remove somebody and keep them out", member.banMember)
	handle(a, "DELETE /v1/groups/{id}/bans/{who}", "unbanMember", "Lift a ban", member.unbanMember)
	handle(a, "GET /v1/groups/{id}/requests", "joinRequests", "Who asks to be let in, oldest first", joining.joinRequests)
	handle(a, "POST /v1/groups/{id}/requests/{who}/approve", "approveJoin", "Let them in", joining.approveJoin)
	handle(a, "DELETE /v1/groups/{id}/requests/{who}", "declineJoin", "Do not let them in", joining.declineJoin)
	handle(a, "POST /v1/groups/{id}/invitations", "invite", "Invite people", joining.invite)
	handle(a, "GET /v1/groups/{id}/invitations", "invitations", "Who is invited, by id", joining.invitations)
	handle(a, "DELETE /v1/groups/{id}/invitations/{who}", "uninvite", "Withdraw an invitation", joining.uninvite)
	handle(a, "GET /v1/me/invitations", "myInvitations", "The groups that you are invited to, by id", joining.myInvitations)
	handle(a, "DELETE /v1/me/invitations/{id}", "declineInvitation", "Decline an invitation to a group", joining.declineInvitation)
	handle(a, "POST /v1/groups/{id}/links", "createLink", "Make an invitation link", joining.createLink, created)
	handle(a, "GET /v1/groups/{id}/links", "links", "Its valid links, by id", joining.links)
	handle(a, "DELETE /v1/groups/{id}/links/{link}", "revokeLink", "Revoke a link at once", joining.revokeLink)
	handle(a, "POST /v1/links/join", "joinByLink", "Join the group that a link is for", joining.joinByLink, perAddress(l.links), perAccount(l.joining))

	a.mux.HandleFunc("GET /.well-known/jwks.json", a.jwks)
}

func (a *API) jwks(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/jwk-set+json")
	w.Header().Set("Cache-Control", "public, max-age=60")
	_, _ = w.Write(a.people.JWKS())
}
