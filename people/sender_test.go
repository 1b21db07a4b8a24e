package people_test

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"mynah/internal/leak"
	"mynah/people"
)

func TestMain(m *testing.M) { leak.Main(m) }

var code = people.Code{To: "anna@example.com", Purpose: people.PurposeSignIn, Digits: "123456", Expires: time.Now().Add(5 * time.Minute)}

// smtpServer is a small SMTP server (RFC 5321) on loopback.
type smtpServer struct {
	address string
	reject  map[string]string // verb to the answer instead of success

	mu   sync.Mutex
	mail string // the last message
	auth string // the last AUTH command
}

func newSMTP(tb testing.TB, reject map[string]string) *smtpServer {
	tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := &smtpServer{address: l.Addr().String(), reject: reject}
	var all sync.WaitGroup
	tb.Cleanup(func() { _ = l.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { s.serve(c) })
		}
	})
	return s
}

func (s *smtpServer) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	in := bufio.NewReader(c)
	say := func(line string) { _, _ = io.WriteString(c, line+"\r\n") }
	say("220 test ESMTP")
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSpace(line)
		verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
		if answer, ok := s.reject[verb]; ok {
			if answer == "hang up" {
				return
			}
			say(answer)
			continue
		}
		switch verb {
		case "EHLO":
			say("250-test")
			say("250-AUTH PLAIN")
			say("250 8BITMIME")
		case "AUTH":
			s.mu.Lock()
			s.auth = line
			s.mu.Unlock()
			say("235 2.7.0 in")
		case "DATA":
			say("354 go on")
			var text strings.Builder
			for {
				l, err := in.ReadString('\n')
				if err != nil {
					return
				}
				if l == ".\r\n" {
					break
				}
				text.WriteString(l)
			}
			s.mu.Lock()
			s.mail = text.String()
			s.mu.Unlock()
			say("250 2.0.0 taken")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}

func TestSMTP(t *testing.T) {
	t.Parallel()
	server := newSMTP(t, nil)
	sender, err := people.NewSMTP("smtp://user:pass%20word@" + server.address + "?from=Chat+<chat@example.com>")
	if err != nil {
		t.Fatal(err)
	}
	if err := sender.Send(t.Context(), code); err != nil {
		t.Fatal(err)
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	for _, part := range []string{"123456", "anna@example.com", "chat@example.com", "Subject:"} {
		if !strings.Contains(server.mail, part) {
			t.Errorf("the mail lacks %q:\n%s", part, server.mail)
		}
	}
	if !strings.HasPrefix(server.auth, "AUTH PLAIN ") {
		t.Errorf("signed in with %q", server.auth)
	}
}

// What comes back decides whether it is worth to try again.
func TestSMTPFailures(t *testing.T) {
	t.Parallel()
	for verb, want := range map[string]struct {
		answer string
		final  bool
	}{
		"RCPT": {"550 5.1.1 no such mailbox", true},
		"MAIL": {"451 4.3.0 greylisted", false},
		"DATA": {"452 4.2.2 full", false},
		"EHLO": {"hang up", false},
	} {
		server := newSMTP(t, map[string]string{verb: want.answer, "HELO": want.answer})
		sender, err := people.NewSMTP("smtp://" + server.address + "?from=chat@example.com")
		if err != nil {
			t.Fatal(err)
		}
		err = sender.Send(t.Context(), code)
		if err == nil || errors.Is(err, people.ErrUndeliverable) != want.final {
			t.Errorf("%s answered %q: %v; final should be %v", verb, want.answer, err, want.final)
		}
		if err != nil && strings.Contains(err.Error(), code.Digits) {
			t.Errorf("the error holds the code: %v", err)
		}
	}
	// Nobody listens.
	sender, err := people.NewSMTP("smtp://127.0.0.1:1?from=chat@example.com")
	if err != nil {
		t.Fatal(err)
	}
	if err := sender.Send(t.Context(), code); err == nil {
		t.Error("sent to nobody")
	}
}

func TestSMTPAddressesThatAreRefused(t *testing.T) {
	t.Parallel()
	for _, address := range []string{
		"", "mail.example.com", "http://mail.example.com?from=a@b.c", "smtp://mail.example.com", "smtp://mail.example.com?from=nobody",
		"smtp://user:hunter2@mail.example.com:x?from=a@b.c", "smtp://mail.example.com?from=a@b.c&tls=maybe", "smtp://mail.example.com:99999?from=a@b.c",
	} {
		_, err := people.NewSMTP(address)
		if err == nil || !strings.Contains(err.Error(), "--smtp-url") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestWebhook(t *testing.T) {
	t.Parallel()
	const secret = "sixteen characters"
	var got struct {
		To, Purpose, Code string
		Expires           int64
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mac := hmac.New(sha256.New, []byte(secret))
		_, _ = fmt.Fprintf(mac, "%s.%s", r.Header.Get("X-Mynah-Timestamp"), body)
		if r.Method != http.MethodPost || r.Header.Get("X-Mynah-Signature") != "sha256="+hex.EncodeToString(mac.Sum(nil)) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		if err := json.Unmarshal(body, &got); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(server.Close)
	hook, err := people.NewWebhook(server.URL, secret, server.Client())
	if err != nil {
		t.Fatal(err)
	}
	if err := hook.Send(t.Context(), code); err != nil {
		t.Fatal(err)
	}
	if got.To != code.To || got.Code != code.Digits || got.Purpose != code.Purpose || got.Expires != code.Expires.Unix() {
		t.Errorf("posted: %+v", got)
	}
}

func TestWebhookFailures(t *testing.T) {
	t.Parallel()
	for status, final := range map[int]bool{
		http.StatusBadRequest: true, http.StatusForbidden: true, http.StatusFound: true,
		http.StatusTooManyRequests: false, http.StatusInternalServerError: false, http.StatusServiceUnavailable: false,
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(status)
		}))
		hook, err := people.NewWebhook(server.URL+"/?key=hunter2", "sixteen characters", server.Client())
		if err != nil {
			t.Fatal(err)
		}
		err = hook.Send(t.Context(), code)
		if err == nil || errors.Is(err, people.ErrUndeliverable) != final {
			t.Errorf("%d: %v", status, err)
		}
		server.Close()
		if err := hook.Send(t.Context(), code); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("nobody listens: %v", err)
		}
	}
	// One that does not answer is given up when the context ends.
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	hook, err := people.NewWebhook(server.URL, "sixteen characters", server.Client())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := hook.Send(ctx, code); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	close(release)
	server.Close()
	for _, bad := range [][2]string{{"ftp://x", "sixteen characters"}, {"http://x", "short"}, {"", "sixteen characters"}} {
		if _, err := people.NewWebhook(bad[0], bad[1], nil); err == nil || !strings.Contains(err.Error(), "--sms-webhook") {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
