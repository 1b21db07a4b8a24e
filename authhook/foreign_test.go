package authhook_test

import (
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"mynah/authhook"
	"mynah/chat"
)

// What identity providers put into their tokens is understood where it is named, and
// opens nothing where it is not.
func TestForeignClaims(t *testing.T) {
	t.Parallel()
	set := writeJWKS(t, jwks(jwk(edKey().Public(), map[string]any{"kid": "idp"})))
	const roles = "https://example.com/roles"
	everything := map[string]any{
		"role": "admin", "groups": []string{"board"}, "acl": map[string]any{"sub": []string{"#"}},
		"realm_access": map[string]any{"roles": []string{"offline_access", "manager"}},
	}
	with := func(more map[string]any) map[string]any {
		all := map[string]any{}
		for _, m := range []map[string]any{everything, more} {
			maps.Copy(all, m)
		}
		return all
	}
	for name, c := range map[string]struct {
		names  authhook.ClaimNames
		claims map[string]any
		want   authhook.Identity // Subject "" for a refusal
	}{
		"nothing named": {authhook.ClaimNames{}, everything, authhook.Identity{Subject: "alice", Role: "user"}},
		"all as ours are": {
			authhook.ClaimNames{Groups: "groups", Role: "role", ACL: "acl"},
			everything,
			authhook.Identity{Subject: "alice", Role: "admin", Groups: []string{"board"}, Sub: []string{"#"}},
		},
		"Auth0": {
			authhook.ClaimNames{Role: roles, Groups: "https://example.com/groups"},
			with(map[string]any{"sub": "auth0|5f7c8ec7c33c6c004bbafe82", roles: []string{"device"}, "https://example.com/groups": []string{"Eng Team", "/corp/hr", "eng"}}),
			authhook.Identity{Subject: "auth0~7C5f7c8ec7c33c6c004bbafe82", Role: "device", Groups: []string{"eng"}},
		},
		"Keycloak": {
			authhook.ClaimNames{Role: "realm_access.roles", Groups: "groups"},
			with(map[string]any{"sub": "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "groups": []string{"/corp/hr", "/corp"}}),
			authhook.Identity{Subject: "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", Role: "user"},
		},
		"an address": {
			authhook.ClaimNames{Subject: "email"},
			with(map[string]any{"email": "emp7@corp.example"}),
			authhook.Identity{Subject: "emp7~40corp.example", Role: "user"},
		},
		"a role that is none":     {authhook.ClaimNames{Role: "role"}, map[string]any{"role": "manager"}, authhook.Identity{Subject: "alice", Role: "user"}},
		"a role of another kind":  {authhook.ClaimNames{Role: "role"}, map[string]any{"role": map[string]any{"admin": true}}, authhook.Identity{Subject: "alice", Role: "user"}},
		"the highest of roles":    {authhook.ClaimNames{Role: "role"}, map[string]any{"role": []any{"device", 7, nil, "service", "ADMIN"}}, authhook.Identity{Subject: "alice", Role: "service"}},
		"one group":               {authhook.ClaimNames{Groups: "team"}, map[string]any{"team": "eng"}, authhook.Identity{Subject: "alice", Role: "user", Groups: []string{"eng"}}},
		"groups of another kind":  {authhook.ClaimNames{Groups: "groups"}, map[string]any{"groups": map[string]any{"eng": 1}}, authhook.Identity{Subject: "alice", Role: "user"}},
		"deep in, by dots":        {authhook.ClaimNames{Role: "a.b.c"}, map[string]any{"a": map[string]any{"b": map[string]any{"c": "device"}}}, authhook.Identity{Subject: "alice", Role: "device"}},
		"not by a name with dots": {authhook.ClaimNames{Role: "a.b"}, map[string]any{"a.b": "admin"}, authhook.Identity{Subject: "alice", Role: "user"}},
		"by a pointer": {
			authhook.ClaimNames{Role: "/https:~1~1example.com~1app/a.b/m~0n"},
			map[string]any{"https://example.com/app": map[string]any{"a.b": map[string]any{"m~n": "device"}}},
			authhook.Identity{Subject: "alice", Role: "device"},
		},
		"exact names alone":           {authhook.ClaimNames{Role: "role"}, map[string]any{"ROLE": "admin", "Role": "admin"}, authhook.Identity{Subject: "alice", Role: "user"}},
		"a subject that is not there": {authhook.ClaimNames{Subject: "email"}, everything, authhook.Identity{}},
		"a subject of another kind":   {authhook.ClaimNames{}, map[string]any{"sub": 7}, authhook.Identity{}},
		"an empty subject":            {authhook.ClaimNames{}, map[string]any{"sub": ""}, authhook.Identity{}},
		"a subject that is too long":  {authhook.ClaimNames{}, map[string]any{"sub": strings.Repeat("|", 22)}, authhook.Identity{}},
		"a subject as long as it may": {
			authhook.ClaimNames{},
			map[string]any{"sub": strings.Repeat("|", 21) + "x"},
			authhook.Identity{Subject: strings.Repeat("~7C", 21) + "x", Role: "user"},
		},
		"a subject that looks escaped": {authhook.ClaimNames{}, map[string]any{"sub": "auth0~7C5f"}, authhook.Identity{Subject: "auth0~7E7C5f", Role: "user"}},
		"the server's own subject":     {authhook.ClaimNames{}, map[string]any{"sub": "archiver", "role": "archiver"}, authhook.Identity{}},
		"… with its role, named":       {authhook.ClaimNames{Role: "role"}, map[string]any{"sub": "archiver", "role": "archiver"}, authhook.Identity{Subject: "archiver", Role: "archiver"}},
		"an acl that is none":          {authhook.ClaimNames{ACL: "acl"}, map[string]any{"acl": map[string]any{"sub": []string{"a/#/b"}}}, authhook.Identity{}},
	} {
		v := newVerifier(t, authhook.VerifierConfig{JWKS: []string{set}, Secret: secret, Claims: c.names})
		id, err := v.Verify(t.Context(), sign(jwt.SigningMethodEdDSA, edKey(), "idp", claims(c.claims)))
		if c.want.Subject == "" {
			if !errors.Is(err, authhook.ErrClaims) {
				t.Errorf("%s: %+v, %v; want ErrClaims", name, id, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		id.Expires = time.Time{}
		if diff := cmp.Diff(&c.want, id); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// The names are for foreign tokens alone: what the shared secret has signed says what it
// always said, the server's own parts among them.
func TestForeignNamesAreNotForTheSecret(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, authhook.VerifierConfig{
		JWKS: []string{writeJWKS(t, jwks(jwk(edKey().Public(), nil)))}, Secret: secret,
		Claims: authhook.ClaimNames{Subject: "email", Groups: "teams", Role: "roles", ACL: "may"},
	})
	id, err := v.Verify(t.Context(), goodToken(authhook.TokenClaims{Subject: "a~7Cb", Role: authhook.RoleService, Groups: []string{"g"}, Sub: []string{"t/#"}}))
	if err != nil {
		t.Fatal(err)
	}
	if id.Subject != "a~7Cb" || id.Role != authhook.RoleService || len(id.Groups) != 1 || len(id.Sub) != 1 {
		t.Errorf("%+v", id)
	}
	for name, more := range map[string]map[string]any{
		"a subject that is no id": {"sub": "auth0|5f"}, "a role that is none": {"role": "manager"}, "a group that is no id": {"groups": []string{"Eng Team"}},
	} {
		if _, err := v.Verify(t.Context(), sign(jwt.SigningMethodHS256, secret, "", claims(more))); !errors.Is(err, authhook.ErrClaims) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// One line tells of groups that are no ids, however many tokens have some.
func TestForeignGroupsAreLoggedOnce(t *testing.T) {
	t.Parallel()
	var log logBuffer
	v := newVerifier(t, authhook.VerifierConfig{
		JWKS: []string{writeJWKS(t, jwks(jwk(edKey().Public(), nil)))}, Claims: authhook.ClaimNames{Groups: "groups"},
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	token := sign(jwt.SigningMethodEdDSA, edKey(), "", claims(map[string]any{"groups": []string{"Eng Team", "eng", "/corp/hr"}}))
	for range 100 {
		if _, err := v.Verify(t.Context(), token); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Count(log.String(), "no ids")
	if lines < 1 || lines > 3 || !strings.Contains(log.String(), `first="Eng Team"`) || !strings.Contains(log.String(), "groups=2") {
		t.Errorf("%d lines: %s", lines, log.String())
	}
}

// A name that names no claim is told at start.
func TestForeignNamesRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{".", "a..b", "a.", ".a", "/", "/a/", "\xff"} {
		for _, names := range []authhook.ClaimNames{{Subject: name}, {Groups: name}, {Role: name}, {ACL: name}} {
			if v, err := authhook.NewVerifier(authhook.VerifierConfig{Secret: secret, Claims: names}); !errors.Is(err, authhook.ErrClaimName) {
				t.Errorf("%+v: %v", names, err)
				if err == nil {
					v.Close()
				}
			}
		}
	}
}

// Every foreign subject that has an id has its own, from which it can be read.
func FuzzSubjectID(f *testing.F) {
	for _, s := range []string{"alice", "a~b", "auth0|5f", "a~7Cb", "~7E7C", "~~7C", "emp7@corp.example", "安娜", "~7c", "archiver ", "~", "~7", "..", "\xff", "system"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, subject string) {
		id, err := authhook.SubjectID(subject)
		if err != nil {
			if !errors.Is(err, authhook.ErrClaims) {
				t.Fatal(err)
			}
			return
		}
		if !chat.ValidID(id) || authhook.IDSubject(id) != subject {
			t.Fatalf("SubjectID(%q) = %q, and back %q", subject, id, authhook.IDSubject(id))
		}
		if id != subject && (id == authhook.SubjectArchiver || id == authhook.SubjectSystem || !authhook.Escaped(id)) {
			t.Fatalf("SubjectID(%q) = %q", subject, id)
		}
	})
}
