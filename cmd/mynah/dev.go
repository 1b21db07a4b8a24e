package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"mynah/authhook"
)

// demoGroup is the group that the demo people share.
const demoGroup = "lobby"

// demoPassword is what the demo people sign in with. Whoever reaches the server
// knows it, so they exist with --dev only.
const demoPassword = "mynah-demo"

// demoTTL is how long the tokens in the crib are valid: long enough for a day of
// trying things out. The next start prints new ones.
const demoTTL = 24 * time.Hour

// printCrib prints commands that work as they stand in another terminal. Tokens are
// in them, which is what --dev is for.
func (s *server) printCrib(p *process, secret Secret) error {
	mint := func(subject string, role authhook.Role) (string, error) {
		return authhook.Mint([]byte(secret.Reveal()), authhook.TokenClaims{
			Subject: subject, Role: role, Groups: []string{demoGroup}, TTL: demoTTL,
			Issuer: s.cfg.Issuer, Audience: s.cfg.Audience,
		})
	}
	tokens := map[string]string{}
	for subject, role := range map[string]authhook.Role{"alice": authhook.RoleUser, "bob": authhook.RoleUser, "sensor": authhook.RoleDevice} {
		token, err := mint(subject, role)
		if err != nil {
			return fmt.Errorf("make demo tokens: %w", err)
		}
		tokens[subject] = token
	}
	if s.broker.MQTTAddr() == nil {
		fmt.Fprintln(p.stdout, "Mynah is running, without MQTT over TCP, so there is nothing to paste.")
		return nil
	}
	mqttHost, mqttPort, err := net.SplitHostPort(loopback(s.broker.MQTTAddr()))
	if err != nil {
		return fmt.Errorf("print the crib: %w", err)
	}
	httpHost, httpPort, err := net.SplitHostPort(loopback(s.web.listener.Addr()))
	if err != nil {
		return fmt.Errorf("print the crib: %w", err)
	}
	mosquitto := func(program, who, rest string) string {
		return fmt.Sprintf("mosquitto_%s -h %s -p %s -u %s -P %s %s", program, mqttHost, mqttPort, who, tokens[who], rest)
	}

	var out strings.Builder
	line := func(what, command string) { fmt.Fprintf(&out, "\n# %s\n%s\n", what, command) }
	fmt.Fprintf(&out, "\nMynah is running. Paste these into other terminals; Ctrl-C here stops it, and the\nnext start goes on with the same data in %s.\n", s.cfg.DataDir)
	line("alice listens, to what is written to her and in her groups",
		mosquitto("sub", "alice", "-i alice-laptop -q 1 -t user/alice -t group/+"))
	line("bob writes to alice",
		mosquitto("pub", "bob", "-q 1 -t user/alice -m 'Hello alice'"))
	line("bob writes to the group",
		mosquitto("pub", "bob", "-q 1 -t group/"+demoGroup+` -m '{"type":"text","body":"Hello everyone"}'`))
	line("a device joins the room and tells its temperature",
		mosquitto("pub", "sensor", "-q 1 -t group/"+demoGroup+` -m '{"temperature":21.5}'`))
	line("bob in a browser's way: MQTT.js over WebSocket",
		fmt.Sprintf("npx --yes mqtt subscribe -l ws -h %s -p %s --path /mqtt -i bob-browser -u bob -P %s -q 1 -v -t 'group/+'", httpHost, httpPort, tokens["bob"]))
	line("alice signs in by HTTP and gets a token of her own",
		fmt.Sprintf(`curl -s http://%s/v1/sessions/password -H 'Content-Type: application/json' -d '{"id":"alice","password":"%s"}'`, net.JoinHostPort(httpHost, httpPort), demoPassword))
	line("what the archive has",
		fmt.Sprintf(`psql '%s' -c "SELECT seq, sender, topic, type, message->'body' AS body FROM messages ORDER BY seq DESC LIMIT 10"`, s.cfg.DatabaseURL.Reveal()))
	line("a token for somebody else", fmt.Sprintf("%s token --data-dir %s --sub carol --group %s", quoted(p.program), quoted(s.cfg.DataDir), demoGroup))
	fmt.Fprintln(p.stdout, out.String())
	return nil
}

// quoted returns a word as a shell takes it.
func quoted(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@%+,=", r)
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0 {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// makeDemoPeople registers alice and bob and makes a room with both, through the
// API's handlers. What an earlier start has made stays unchanged.
func (s *server) makeDemoPeople(ctx context.Context, secret Secret) error {
	call := func(subject string, role authhook.Role, method, path string, body any) error {
		token, err := s.ownToken(secret, subject, role)(ctx)
		if err != nil {
			return fmt.Errorf("make demo people: %w", err)
		}
		raw, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("make demo people: %w", err)
		}
		ctx, cancel := context.WithTimeout(ctx, firstConnectTimeout)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, method, "http://"+loopback(s.web.listener.Addr())+path, bytes.NewReader(raw))
		if err != nil {
			return fmt.Errorf("make demo people: %w", err)
		}
		request.Header.Set("Content-Type", "application/json")
		if role != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return fmt.Errorf("make demo people: %w", err)
		}
		defer func() { _ = response.Body.Close() }() // only read
		if response.StatusCode/100 != 2 && response.StatusCode != http.StatusConflict {
			return fmt.Errorf("make demo people: %s %s: %s", method, path, response.Status)
		}
		return nil
	}
	for _, subject := range []string{"alice", "bob"} {
		if err := call(subject, "", http.MethodPost, "/v1/accounts", map[string]string{"id": subject, "password": demoPassword, "name": strings.ToUpper(subject[:1]) + subject[1:]}); err != nil {
			return err
		}
	}
	if err := call("demo-admin", authhook.RoleAdmin, http.MethodPost, "/v1/groups", map[string]string{"id": demoGroup, "name": "Lobby", "join": "open"}); err != nil {
		return err
	}
	for _, subject := range []string{"alice", "bob"} {
		if err := call(subject, authhook.RoleUser, http.MethodPost, "/v1/groups/"+demoGroup+"/join", struct{}{}); err != nil {
			return err
		}
	}
	return nil
}
