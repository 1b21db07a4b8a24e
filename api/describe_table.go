package api

import "mynah/chat"

// about is what /openapi.json says of an operation besides what its types say.
type about struct {
	text string // a description
	in   string // an example of the body, JSON; "" if it takes none
	out  string // an example of the answer's body, JSON; "" if it has none
	// problems are those of the operation's own, with when they occur. What any request of
	// its kind may meet is added by describe.
	problems map[chat.Code]string
}

// Values that several examples have.
const (
	exampleTokens = `{"account":"anna","session":"01K5H0","access_token":"eyJhbGciOi…","token_type":"Bearer","expires_in":900,"refresh_token":"QK3…","created":false}`
	exampleMe     = `{"id":"anna","kind":"user","name":"Anna","avatar":"https://img.example.com/anna.jpg","ext":{"city":"Hangzhou"},` +
		`"settings":{"find_by_id":true,"find_by_phone":false,"find_by_mail":false},"created":"2026-01-05T08:00:00Z"}`
	exampleProfile = `{"id":"bert","kind":"user","name":"Bert","avatar":"https://img.example.com/bert.jpg"}`
	exampleDevice  = `{"id":"pump-7","role":"device","name":"Pump 7","group":"g4kq2","groups":["g4kq2"],"created_by":"anna","created":"2026-01-05T08:00:00Z"}`
	exampleToken   = `{"token":"eyJhbGciOi…","expires":"2027-01-05T08:00:00Z"}` //nolint:gosec // G101: an example that opens nothing
	exampleFriend  = `{"id":"bert","name":"Bert","avatar":"https://img.example.com/bert.jpg","remark":"from work","since":"2026-01-05T08:00:00Z"}`
	exampleGroup   = `{"id":"g4kq2","name":"Lobby","announcement":"Welcome","join":"approval","muted":false,"members":42,"created":"2026-01-05T08:00:00Z",` +
		`"me":{"role":"owner","joined":"2026-01-05T08:00:00Z"}}`
	exampleMember  = `{"id":"bert","name":"Bert","avatar":"https://img.example.com/bert.jpg","role":"member","nickname":"B.","joined":"2026-01-05T08:00:00Z"}`
	exampleLink    = `{"id":"L7Q2","by":"anna","uses":0,"max_uses":10,"created":"2026-01-05T08:00:00Z","expires":"2026-01-12T08:00:00Z"}`
	exampleRequest = `{"id":"bert","name":"Bert","note":"We met in Hangzhou","since":"2026-01-05T08:00:00Z"}`
)

func page(item string) string { return `{"items":[` + item + `],"next":"ImJlcnQi"}` }

type why = map[chat.Code]string

// What problems of several operations say.
const (
	noFit        = "The proof does not fit, was used, or is over."
	disabled     = "The account is disabled, or registration is closed."
	noGroup      = "There is no such group, or it was dissolved."
	noMember     = "There is no such group, or they are no member of it."
	notYours     = "You are not in the group."
	roleTooLow   = "Your role in the group does not allow it."
	peopleOnly   = "Devices and services have none."
	staleSignIn  = "It takes a sign-in of the last 10 minutes: a stolen token is not enough."
	noContact    = "They are no contact of yours, or there is no such request."
	notTheDevice = "There is no such device, or it is not yours to see."
	onlyAdmin    = "It takes an admin."
)

// abouts has every operation, by its id.
var abouts = map[string]about{
	"waysToSignIn": {
		text: "What a sign-in page can offer on this server: whether people may register, by which methods they sign in, and which OpenID Connect providers there are.",
		out:  `{"registration":"open","methods":["password","phone"],"oidc":["corp"]}`,
	},
	"register": {
		text: "Makes an account with an id and a password and signs it in. Leave `id` out to have one chosen. An id cannot be had if it is taken, was used before, or is the server's own; which of these is not told.",
		in:   `{"id":"anna","password":"correct horse battery","name":"Anna","device":"Anna's phone"}`, out: exampleTokens,
		problems: why{chat.CodeConflict: "The id cannot be had.", chat.CodeNotAllowed: "Registration is closed on this server."},
	},
	"askCode": {
		text: "Sends six digits to a phone number or mail address. The answer is the same whether somebody has an account by it. The code fits for five minutes, together with the challenge of the answer.",
		in:   `{"channel":"phone","to":"+8613800138000","purpose":"signin"}`, out: `{"challenge":"Zk3…","expires_in":300}`,
	},
	"resetPassword": {
		text: "Sets a new password with a code that was sent for `reset`. All devices are signed out.",
		in:   `{"challenge":"Zk3…","code":"123456","password":"correct horse battery"}`, problems: why{chat.CodeUnauthenticated: noFit, chat.CodeNotAllowed: disabled},
	},
	"signInPassword": {
		text: "Signs in with id and password. The access token is the bearer token here and the password in MQTT.",
		in:   `{"id":"anna","password":"correct horse battery","device":"Anna's phone"}`, out: exampleTokens,
		problems: why{chat.CodeUnauthenticated: noFit, chat.CodeNotAllowed: disabled},
	},
	"signInCode": {
		text: "Signs in with a code that was sent for `signin`, and registers whoever owns the number or address if it has no account yet.",
		in:   `{"challenge":"Zk3…","code":"123456","device":"Anna's phone"}`, out: exampleTokens,
		problems: why{chat.CodeUnauthenticated: noFit, chat.CodeNotAllowed: disabled},
	},
	"signInWeChat": {
		text: "Signs in, or registers, from a WeChat mini-program with what `wx.login` gave.",
		in:   `{"code":"0a1B…","device":"WeChat"}`, out: exampleTokens,
		problems: why{chat.CodeUnauthenticated: noFit, chat.CodeNotAllowed: "The account is disabled, registration is closed, or WeChat has blocked the user.", chat.CodeUpstream: "WeChat refused this server."},
	},
	"signInTicket": {
		text: "Signs in, or registers, with the ticket that the redirect address was given at the end of a sign-in with OpenID Connect.",
		in:   `{"ticket":"Vt8…","verifier":"dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"}`, out: exampleTokens,
		problems: why{chat.CodeUnauthenticated: noFit, chat.CodeNotAllowed: disabled},
	},
	"refresh": {
		text: "Changes a refresh token for a new access token and a new refresh token. Each is used once; one that is used twice ends the session, since somebody else may have it.",
		in:   `{"refresh_token":"QK3…"}`, out: exampleTokens, problems: why{chat.CodeUnauthenticated: noFit, chat.CodeNotAllowed: disabled},
	},
	"beginOIDC": {
		text:     "Where a page sends the browser to sign in with an OpenID Connect provider. It is redirected to the provider and in the end to `redirect`, with `ticket` or `error` in the query.",
		problems: why{chat.CodeNotFound: "This server knows no such provider."},
	},
	"finishOIDC": {
		text:     "Where the provider sends the browser back. It is redirected to the page that began, with `ticket` or `error` in the query.",
		problems: why{chat.CodeUnauthenticated: "The sign-in is over or was not begun in this browser.", chat.CodeNotFound: "This server knows no such provider."},
	},

	"me": {text: "Your own account: profile, settings, and when it was made.", out: exampleMe, problems: why{chat.CodeNotFound: "There is no account by your token's id."}},
	"editMe": {
		text: "Changes what is given of your profile and settings; the rest stays. `ext` replaces the one before.",
		in:   `{"name":"Anna","settings":{"find_by_phone":true}}`, out: exampleMe, problems: why{chat.CodeNotFound: "There is no account by your token's id."},
	},
	"deleteMe": {
		text:     "Deletes your account, its identities and sessions. Your messages stay in the archive, with your id; nobody gets that again.",
		problems: why{chat.CodeStaleSignIn: staleSignIn, chat.CodeNotFound: "There is no account by your token's id."},
	},
	"changePassword": {
		text:     "Changes your password, for which the one so far is needed; a first one takes a fresh sign-in. Your other devices are signed out.",
		in:       `{"current":"correct horse battery","new":"another horse battery"}`,
		problems: why{chat.CodeNotAllowed: peopleOnly, chat.CodeStaleSignIn: staleSignIn, chat.CodeNotFound: "There is no account by your token's id."},
	},
	"identities": {text: "The ways in which you can sign in.", out: `{"items":[{"provider":"phone","subject":"+8613800138000","created":"2026-01-05T08:00:00Z"}]}`},
	"linkCode": {
		text: "Links a phone number or mail address to your account with a code that was sent for `link`.", in: `{"challenge":"Zk3…","code":"123456"}`,
		problems: why{chat.CodeNotAllowed: peopleOnly, chat.CodeStaleSignIn: staleSignIn, chat.CodeConflict: "It belongs to another account."},
	},
	"linkWeChat": {
		text: "Links WeChat to your account, with what `wx.login` gave.", in: `{"code":"0a1B…"}`,
		problems: why{chat.CodeNotAllowed: peopleOnly, chat.CodeStaleSignIn: staleSignIn, chat.CodeConflict: "It belongs to another account.", chat.CodeUpstream: "WeChat refused this server."},
	},
	"linkTicket": {
		text: "Links an identity of an OpenID Connect provider to your account.", in: `{"ticket":"Vt8…","verifier":"dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"}`,
		problems: why{chat.CodeNotAllowed: peopleOnly, chat.CodeStaleSignIn: staleSignIn, chat.CodeConflict: "It belongs to another account."},
	},
	"unlink": {
		text:     "Removes a way to sign in, but not the last one.",
		problems: why{chat.CodeStaleSignIn: staleSignIn, chat.CodeNotFound: "You have no such identity.", chat.CodeConflict: "It is the only way to sign in."},
	},
	"sessions": {
		text: "Your signed-in devices, newest first.",
		out:  page(`{"id":"01K5H0","device":"Anna's phone","method":"password","address":"203.0.113.7","created":"2026-01-05T08:00:00Z","used":"2026-01-05T09:00:00Z","expires":"2026-02-04T09:00:00Z","current":true}`),
	},
	"endOtherSessions": {text: "Signs out all your devices but this one. Their connections end."},
	"endSession":       {text: "Signs out a device of yours, by its id, or this one as `current`. Its connections end.", problems: why{chat.CodeNotFound: "You have no such session."}},

	"profile": {text: "Somebody's profile. Who does not exist, was deleted, or is not for you to see has a blank one, so that it tells none of these.", out: exampleProfile},
	"lookUp":  {text: "The profiles of up to 100 people, in the order of their ids; blank ones as for a single one.", in: `{"ids":["bert","carol"]}`, out: `{"items":[` + exampleProfile + `,{"id":"carol","kind":"user","name":""}]}`},
	"find": {
		text: "Finds who lets strangers find them by their id, or by a linked phone number or mail address.", in: `{"by":"phone","key":"+8613800138000"}`, out: exampleProfile,
		problems: why{chat.CodeNotFound: "Nobody lets you find them by that."},
	},

	"createDevice": {
		text: "Makes a device or service and gives out its token, or takes its public key. The owner of a group makes devices for it; an admin makes all others.",
		in:   `{"name":"Pump 7","group":"g4kq2","days":365}`, out: `{"device":` + exampleDevice + `,"credential":` + exampleToken + `}`,
		problems: why{chat.CodeNotAllowed: onlyAdmin, chat.CodeConflict: "The id cannot be had.", chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours},
	},
	"devices": {text: "Devices and services by id: of a group that you own, or all if you are an admin.", out: page(exampleDevice), problems: why{chat.CodeNotAllowed: "You do not own the group."}},
	"device":  {text: "A device or service that is yours to see.", out: exampleDevice, problems: why{chat.CodeNotFound: notTheDevice}},
	"renameDevice": {
		text: "Changes the name of a device or service.", in: `{"name":"Pump 8"}`, out: exampleDevice,
		problems: why{chat.CodeNotFound: notTheDevice, chat.CodeNotAllowed: onlyAdmin},
	},
	"deleteDevice": {text: "Deletes a device or service; its connections end, its messages stay.", problems: why{chat.CodeNotFound: notTheDevice, chat.CodeNotAllowed: onlyAdmin}},
	"renewDevice": {
		text: "Gives a device a new token or key. The one before is refused at once.", in: `{"days":365}`, out: exampleToken,
		problems: why{chat.CodeNotFound: notTheDevice, chat.CodeNotAllowed: onlyAdmin},
	},
	"disableDevice":  {text: "Disables a device at once: its tokens are refused, its connections end.", problems: why{chat.CodeNotFound: notTheDevice, chat.CodeNotAllowed: onlyAdmin}},
	"enableDevice":   {text: "Enables a device again.", problems: why{chat.CodeNotFound: notTheDevice, chat.CodeNotAllowed: "An operator has disabled it."}},
	"disableAccount": {text: "Disables an account at once: it cannot sign in, its tokens are refused, its connections end.", in: `{"unknown":false}`, problems: why{chat.CodeNotFound: "There is no such account."}},
	"enableAccount":  {text: "Enables an account again.", problems: why{chat.CodeNotFound: "There is no such account."}},
	"rotateKeys":     {text: "Makes a new key that signs from now on. Tokens signed before stay valid, unless `distrust` is set.", in: `{"distrust":false}`, out: `{"kid":"k2"}`},

	"askContact": {
		text: "Asks somebody to become your contact. If they have asked you before, you are contacts now. Whether they exist or have blocked you is not told.",
		in:   `{"id":"bert","note":"We met in Hangzhou"}`, out: `{"state":"asked"}`,
		problems: why{chat.CodeNotAllowed: peopleOnly, chat.CodeConflict: "You are contacts, or you have blocked them.", chat.CodeLimit: "Too many of your requests wait for an answer, or one of you has too many contacts."},
	},
	"contactRequests": {text: "Contact requests that wait for an answer, newest first: those that came to you, or those that you made.", out: page(exampleRequest)},
	"acceptContact": {
		text: "Accepts a contact request.", out: exampleFriend,
		problems: why{chat.CodeNotAllowed: peopleOnly, chat.CodeNotFound: noContact, chat.CodeConflict: "You are contacts, or you have blocked them.", chat.CodeLimit: "One of you has as many contacts as there may be."},
	},
	"endContactRequest": {text: "Declines a contact request, or withdraws one of yours.", problems: why{chat.CodeNotFound: noContact, chat.CodeConflict: "You are contacts, or you have blocked them."}},
	"contacts":          {text: "Your contacts, by id, with their names and what you call them.", out: page(exampleFriend)},
	"contact":           {text: "One of your contacts.", out: exampleFriend, problems: why{chat.CodeNotFound: noContact}},
	"remarkContact":     {text: "Sets what you call a contact, which they do not see.", in: `{"remark":"from work"}`, out: exampleFriend, problems: why{chat.CodeNotFound: noContact, chat.CodeConflict: "You have blocked them."}},
	"removeContact":     {text: "Ends being contacts, for both of you. They are not told.", problems: why{chat.CodeNotFound: noContact, chat.CodeConflict: "You have blocked them."}},
	"blocks":            {text: "Whom you have blocked, by id.", out: page(`{"id":"carol","name":"Carol","since":"2026-01-05T08:00:00Z"}`)},
	"block":             {text: "Keeps somebody from writing to you, asking and inviting you. They are not told.", problems: why{chat.CodeNotAllowed: peopleOnly, chat.CodeLimit: "You have blocked as many as you can."}},
	"unblock":           {text: "Lets somebody write to you again."},
	"privacy":           {text: "Who may write to you, and who may see whether you are online.", out: `{"write":"contacts","presence":"acquainted"}`},
	"setPrivacy":        {text: "Changes who may write to you, and who may see whether you are online. What is left out stays.", in: `{"write":"contacts"}`, out: `{"write":"contacts","presence":"acquainted"}`},

	"createGroup": {
		text: "Makes a group that you own. With `join` as `open` it is a room: whoever subscribes to `group/<id>` becomes a member.",
		in:   `{"name":"Lobby","join":"approval","invite":["bert"]}`, out: exampleGroup,
		problems: why{chat.CodeNotAllowed: "Only an admin chooses the id.", chat.CodeConflict: "The id cannot be had.", chat.CodeLimit: "You are in as many groups as one can be in, or too many are invited."},
	},
	"myGroups": {text: "The groups that you are in, by id.", out: page(exampleGroup)},
	"group": {
		text: "A group. Who is no member sees those that one can join or ask to be let into, and those that one is invited to.", out: exampleGroup,
		problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow},
	},
	"editGroup": {
		text: "Changes what is given of a group; the rest stays.", in: `{"announcement":"Welcome","muted":false}`, out: exampleGroup,
		problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow},
	},
	"dissolveGroup": {text: "Dissolves a group. Its members are told, its devices end, its messages stay in the archive.", problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow}},
	"transferGroup": {text: "Makes a member the owner; you stay as an admin.", in: `{"to":"bert"}`, problems: why{chat.CodeNotFound: noMember, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow, chat.CodeLimit: "A group has so many admins at most."}},
	"joinGroup": {
		text: "Joins a group, or asks to be let in where joining takes approval. The body may be left out.", in: `{"note":"Bert sent me"}`, out: `{"state":"member"}`,
		problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: "One joins it by invitation.", chat.CodeNotAllowed: roleTooLow, chat.CodeLimit: "The group is full, too many wait, or you are in too many groups."},
	},
	"leaveGroup": {text: "Leaves a group. Its owner transfers or dissolves it instead.", problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: "You own the group.", chat.CodeConflict: "You are in it by your token, and as long as you have that."}},
	"members":    {text: "The members of a group, by id, with their names; with `staff` the owner and the admins.", out: page(exampleMember), problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow}},
	"member":     {text: "A member of a group.", out: exampleMember, problems: why{chat.CodeNotFound: noMember, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow}},
	"editMember": {
		text: "Changes a member's nickname, role or mute, as your role in the group allows. A nickname is also one's own to change.", in: `{"mute":3600}`, out: exampleMember,
		problems: why{chat.CodeNotFound: noMember, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow, chat.CodeLimit: "A group has so many admins at most."},
	},
	"kickMember":  {text: "Removes a member, who may come back as others do.", problems: why{chat.CodeNotFound: noMember, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow, chat.CodeConflict: "They are in it by their token: ban them."}},
	"bans":        {text: "Who is banned from a group, by id.", out: page(`{"id":"carol","name":"Carol","by":"anna","reason":"Advertising","at":"2026-01-05T08:00:00Z"}`), problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow}},
	"banMember":   {text: "Removes somebody and keeps them out, whatever their token says; also who is no member.", in: `{"reason":"Advertising"}`, problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow, chat.CodeLimit: "The group has banned as many as it can."}},
	"unbanMember": {text: "Lifts a ban: who was kept out may come as others do.", problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow}},
	"joinRequests": {
		text: "Who asks to be let into a group, oldest first.", out: page(`{"id":"bert","name":"Bert","note":"Bert here","at":"2026-01-05T08:00:00Z"}`),
		problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow},
	},
	"approveJoin": {text: "Lets somebody in who asks.", problems: why{chat.CodeNotFound: "There is no such group or request.", chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow, chat.CodeLimit: "The group is full, or they are in too many."}},
	"declineJoin": {text: "Does not let somebody in who asks.", problems: why{chat.CodeNotFound: "There is no such group or request.", chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow}},
	"invite": {
		text: "Invites people, who join whatever the way to join is. Members, the banned and the invited are left out.", in: `{"ids":["bert","carol"]}`,
		problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow, chat.CodeLimit: "Too many are invited."},
	},
	"invitations": {
		text: "Who is invited to a group, by id.", out: page(`{"id":"bert","name":"Bert","by":"anna","at":"2026-01-05T08:00:00Z","expires":"2026-01-12T08:00:00Z"}`),
		problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow},
	},
	"uninvite":          {text: "Withdraws an invitation.", problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow}},
	"myInvitations":     {text: "The groups that you are invited to, by id.", out: page(`{"group":"g4kq2","name":"Lobby","members":42,"by":"anna","at":"2026-01-05T08:00:00Z","expires":"2026-01-12T08:00:00Z"}`)},
	"declineInvitation": {text: "Declines an invitation to a group.", problems: why{chat.CodeNotFound: noGroup}},
	"createLink": {
		text: "Makes an invitation link: whoever has its token may join while it is valid. The token is shown this once.", in: `{"hours":168,"uses":10}`, out: `{"link":` + exampleLink + `,"token":"7QK2M4…"}`,
		problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow, chat.CodeLimit: "The group has as many links as it can."},
	},
	"links":      {text: "The valid invitation links of a group, by id.", out: page(exampleLink), problems: why{chat.CodeNotFound: noGroup, chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow}},
	"revokeLink": {text: "Revokes an invitation link at once.", problems: why{chat.CodeNotFound: "There is no such group or link.", chat.CodeNotMember: notYours, chat.CodeNotAllowed: roleTooLow}},
	"joinByLink": {
		text: "Joins the group that a link is for.", in: `{"token":"7QK2M4"}`, out: exampleGroup,
		problems: why{chat.CodeNotFound: "The link is not valid.", chat.CodeNotAllowed: roleTooLow, chat.CodeLimit: "The group is full, or you are in too many groups."},
	},
}
