package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// mustFile writes a settings file.
func mustFile(tb testing.TB, content string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "mynah.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// Guards against a secret that is printed because it is not in the form that its flag
// has: who has one provider writes the secret alone.
func TestWrongSecretIsNotPrinted(t *testing.T) {
	t.Parallel()
	const secret = "topsecretoidc"
	for name, run := range map[string]func() (int, string, string){
		"flag": func() (int, string, string) { return mustRun(t, nil, "serve", "--oidc-secret", secret) },
		"environment": func() (int, string, string) {
			return mustRun(t, map[string]string{"MYNAH_OIDC_SECRET": secret}, "serve")
		},
		"file": func() (int, string, string) {
			return mustRun(t, nil, "serve", "--config", mustFile(t, "oidc-secret: "+secret))
		},
		"nested file": func() (int, string, string) {
			return mustRun(t, nil, "serve", "--config", mustFile(t, "oidc-secret: {a: {b: "+secret+"}}"))
		},
	} {
		status, stdout, stderr := run()
		if status != exitFailure || strings.Contains(stdout+stderr, secret) || !strings.Contains(stderr, "oidc-secret") {
			t.Errorf("%s: status %d: %s", name, status, stderr)
		}
	}
}

// Guards against values that a settings file cannot hold, and numbers that are others
// than were written: a secret may be of digits.
func TestSettingsFile(t *testing.T) {
	t.Parallel()
	var grammar struct {
		People
		JWTSecret   Secret   `name:"jwt-secret"`
		AllowOrigin []string `name:"allow-origin"`
		NoArchive   bool     `name:"no-archive"`
		Rate        float64  `name:"rate"`
		Unset       string   `name:"unset" default:"as it was"`
	}
	file, err := configFile(mustFile(t, `
jwt-secret: 12345678901234567890123456789012345
sms-webhook-secret: 012345
oidc:
  google: https://accounts.google.com
  ours: https://id.example.com/a;b
oidc-client-id: "google=one;ours=two"
oidc-secret: {google: "a=b;c", ours: 0x10}
allow-origin: ["https://a.example.com", "https://b.example.com"]
no-archive: True
rate: 1.5
unset:
`))
	if err != nil {
		t.Fatal(err)
	}
	parser, err := kong.New(&grammar, append(slices.Clone(grammarOptions), kong.Resolvers(file))...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(nil); err != nil {
		t.Fatal(err)
	}
	if got := grammar.JWTSecret.Reveal(); got != "12345678901234567890123456789012345" {
		t.Errorf("jwt-secret: %s", got)
	}
	if got := grammar.SMSWebhookSecret.Reveal(); got != "012345" {
		t.Errorf("sms-webhook-secret: %s", got)
	}
	if want := map[string]string{"google": "https://accounts.google.com", "ours": "https://id.example.com/a;b"}; !maps.Equal(grammar.OIDC, want) {
		t.Errorf("oidc: %v", grammar.OIDC)
	}
	if want := map[string]string{"google": "one", "ours": "two"}; !maps.Equal(grammar.OIDCClientID, want) {
		t.Errorf("oidc-client-id: %v", grammar.OIDCClientID)
	}
	if want := (SecretPairs{"google": "a=b;c", "ours": "0x10"}); !maps.Equal(grammar.OIDCSecret, want) {
		t.Errorf("oidc-secret: %v", grammar.OIDCSecret)
	}
	if want := []string{"https://a.example.com", "https://b.example.com"}; !slices.Equal(grammar.AllowOrigin, want) || !grammar.NoArchive || grammar.Rate != 1.5 || grammar.Unset != "as it was" {
		t.Errorf("the others: %v", grammar)
	}
}

// Guards against rates of which nothing comes, and against mistakes that are told only
// when a database has been made.
func TestWrongSettingsAreToldAtOnce(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	secret := strings.Repeat("s", 32)
	for _, test := range [][2]string{
		{"--publish-rate=-0.5", "--publish-rate"},
		{"--publish-rate=1e-9", "--publish-rate"},
		{"--publish-rate=NaN", "--publish-rate"},
		{"--max-connections-per-address=-1", "--max-connections-per-address"},
		{"--public-url=chat.example.com", "--public-url"},
		{"--wechat-app-id=wx1", "--wechat-secret"},
		{"--sms-webhook=nonsense", "--sms-webhook"},
		{"--address-limits=-1", "--address-limits"},
		{"--oidc=a=https://x", "--oidc"},
		{"--allow-origin=https://x/", "--allow-origin"},
	} {
		status, _, stderr := mustRun(t, nil, "serve", "--data-dir", data, "--jwt-secret", secret, test[0])
		if status != exitFailure || !strings.Contains(stderr, test[1]) {
			t.Errorf("%s: status %d: %s", test[0], status, stderr)
		}
	}
	if _, err := os.Stat(data); err == nil {
		t.Error("something was started")
	}
}

// The names of claims come from the command line and from a file in several forms; wrong
// ones are told by the flag's name.
func TestClaimNames(t *testing.T) {
	t.Parallel()
	want := Claims{Subject: "email", Groups: "https://example.com/groups", Role: "realm_access.roles"}
	for name, file := range map[string]string{
		"text":  "jwt-claim: sub=email,groups=https://example.com/groups,role=realm_access.roles",
		"names": "jwt-claim: {sub: email, groups: 'https://example.com/groups', role: realm_access.roles}",
		"list":  "jwt-claim: [sub=email, 'groups=https://example.com/groups', role=realm_access.roles]",
	} {
		resolver, err := configFile(mustFile(t, file))
		if err != nil {
			t.Fatal(err)
		}
		var grammar struct{ Identity }
		parser, err := kong.New(&grammar, append(slices.Clone(grammarOptions), kong.Resolvers(resolver))...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(nil); err != nil || grammar.JWTClaim != want {
			t.Errorf("%s: %+v, %v", name, grammar.JWTClaim, err)
		}
	}
	jwks := mustFile(t, `{"keys":[]}`)
	secret := strings.Repeat("s", 32)
	for _, args := range [][]string{
		{"--jwks", jwks, "--jwt-claim", "email"},
		{"--jwks", jwks, "--jwt-claim", "name=email"},
		{"--jwks", jwks, "--jwt-claim", "sub="},
		{"--jwks", jwks, "--jwt-claim", "sub=a..b"},
		{"--jwt-secret", secret, "--jwt-claim", "sub=email"},
	} {
		status, _, stderr := mustRun(t, nil, append([]string{"serve", "--data-dir", t.TempDir()}, args...)...)
		if status != exitFailure || !strings.Contains(stderr, "--jwt-claim") {
			t.Errorf("%v: status %d: %s", args, status, stderr)
		}
	}
}
