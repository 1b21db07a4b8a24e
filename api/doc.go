// Package api is Mynah's HTTP API: accounts and signing in, profiles, contacts,
// groups, devices and services, on PostgreSQL, with its effect on MQTT at once.
//
// What it guarantees:
//
//   - A call that was answered has been committed. A creating call repeated with
//     the same Idempotency-Key creates nothing more and gets the first answer.
//   - Every error is a problem document (RFC 9457) whose code is the word that
//     MQTT clients read. Nothing internal is in it, no field's value is repeated,
//     and no secret is logged.
//   - Whether a phone number, a mail address or another identity has an account
//     is told to nobody but who proves to own it: asking for a code, a wrong code,
//     a wrong password and a reset are answered with the same words and work.
//     Ids are different: people choose them and they stand in every message, so
//     to register one that cannot be had is refused, with the same words whether
//     it is taken, was deleted or is reserved (and with people.RegisterAssigned
//     nobody chooses).
//   - What is taken away is gone: an ended session, a disabled device or account
//     is refused here with the next request and on MQTT as soon as the feed of
//     changes (schema/migrations/00010_accounts.sql) has been read.
//
// # Map
//
//	routes.go       every route, one line each, and the families of handlers
//	rights.go       which role may make which call
//	config.go       Config
//	api.go          New, Handler, Start, Stop
//	request.go      the outermost layer: request id, deadline, log line, ETag
//	cors.go         which web pages may call
//	operation.go    what a route can ask for: token, role, limit, Idempotency-Key
//	auth.go         who calls
//	problem.go      errors to statuses, one table
//	idempotency.go  answers kept for a key
//	applied.go      answers that wait until the brokers know
//	page.go         keyset pagination
//	named.go        names and pictures in lists of people
//	json.go         how bodies are read and written
//	describe.go     /openapi.json, from describe_table.go; docs.go serves it
//
// and the families: signin.go, oidc.go, me.go, sessions.go, people.go, devices.go,
// admin.go, contacts.go, groups.go, members.go, joining.go.
//
// The domain, which knows nothing of HTTP, is in packages people, people/contacts and groups.
//
// A handler is a method of its family (signInHandlers, groupHandlers …), which has what its
// handlers need and nothing more. It takes a context and an input struct and returns an
// output struct or an error. Errors for clients are *chat.Error; any
// other is logged and answered as a failure of the server. A handler asks
// callerOf who calls; it reads and writes through a store that uses schema/pgtx, so that
// it takes part in the call's transaction. All SQL is in package schema.
package api
