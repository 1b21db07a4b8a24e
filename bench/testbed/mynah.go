package testbed

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// MynahSpec says how to run Mynah's broker.
type MynahSpec struct {
	Bin     string // path of bin/mynah
	Logs    string // folder for its output
	DataDir string
	Secret  string // for tokens
	MQTT    int    // ports of 127.0.0.1
	HTTP    int
	Metrics int
	Args    []string // further flags
}

// MynahBroker starts `mynah broker` and waits until it accepts connections.
func MynahBroker(s *MynahSpec) (*Proc, error) {
	p, err := StartMynahBroker(s)
	if err != nil {
		return nil, err
	}
	return p, p.WaitPort(addr(s.MQTT), 30*time.Second)
}

// StartMynahBroker starts `mynah broker` without waiting for it.
func StartMynahBroker(s *MynahSpec) (*Proc, error) {
	return Start(&ProcSpec{
		Name: "mynah-broker", Dir: s.Logs, Env: []string{"MYNAH_JWT_SECRET=" + s.Secret},
		Args: append([]string{
			s.Bin, "broker", "--data-dir", s.DataDir, "--mqtt-addr", addr(s.MQTT),
			"--http-addr", addr(s.HTTP), "--metrics-addr", addr(s.Metrics),
		}, s.Args...),
	})
}

// ArchiverSpec says how to run Mynah's archiver.
type ArchiverSpec struct {
	Bin      string
	Logs     string
	Secret   string
	Broker   int    // port of the broker, or of a proxy before it
	Database string // address of the database
	Metrics  int
	Args     []string
}

// StartMynahArchiver starts `mynah archiver`.
func StartMynahArchiver(s *ArchiverSpec) (*Proc, error) {
	return Start(&ProcSpec{
		Name: "mynah-archiver", Dir: s.Logs, Env: []string{"MYNAH_JWT_SECRET=" + s.Secret, "MYNAH_DATABASE_URL=" + s.Database},
		Args: append([]string{
			s.Bin, "archiver", "--broker-url", "mqtt://" + addr(s.Broker), "--metrics-addr", addr(s.Metrics),
		}, s.Args...),
	})
}

// MynahMigrate runs `mynah migrate` on the database.
func MynahMigrate(bin, logs, database string) error {
	p, err := Start(&ProcSpec{Name: "mynah-migrate", Dir: logs, Args: []string{bin, "migrate"}, Env: []string{"MYNAH_DATABASE_URL=" + database}})
	if err != nil {
		return err
	}
	<-p.Done()
	if _, err := p.Exited(); err != nil {
		return fmt.Errorf("mynah migrate: %w: %s", err, p.LogTail())
	}
	return nil
}

// WaitReady waits until GET /readyz on the HTTP port answers 200.
func WaitReady(p *Proc, port int, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr(port)+"/readyz", http.NoBody)
		if err != nil {
			cancel()
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		ok := err == nil && resp.StatusCode == http.StatusOK
		if err == nil {
			err = resp.Body.Close()
		}
		cancel()
		if ok && err == nil {
			return nil
		}
		if done, exit := p.Exited(); done {
			return fmt.Errorf("%s ended at start (%w): %s", p.Name, exitError(exit), p.LogTail())
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready after %s: %s", p.Name, timeout, p.LogTail())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func addr(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// NewSecret returns a random secret for tokens.
func NewSecret() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	return hex.EncodeToString(b)
}

// Token returns a token of a user for a day, signed with the secret, that makes
// the user a member of the groups.
func Token(secret, subject, role string, groups ...string) (string, error) {
	now := time.Now()
	claims := jwt.MapClaims{"sub": subject, "iat": now.Unix(), "exp": now.Add(24 * time.Hour).Unix()}
	if role != "" {
		claims["role"] = role
	}
	if len(groups) > 0 {
		claims["groups"] = groups
	}
	t, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(secret))
	if err != nil {
		return "", fmt.Errorf("sign a token for %s: %w", subject, err)
	}
	return t, nil
}
