package people

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mynah/chat"
	"mynah/internal/waitfor"
)

// flaky is a Sender that fails a number of times.
type flaky struct {
	fails int32
	err   error
	sent  atomic.Int32
	tries atomic.Int32
}

func (f *flaky) Send(context.Context, Code) error {
	if f.tries.Add(1) <= f.fails {
		return f.err
	}
	f.sent.Add(1)
	return nil
}

func testQueue(t *testing.T, s Sender, dummy bool) {
	t.Helper()
	p := newCodeQueue(slog.New(slog.DiscardHandler))
	p.start(t.Context())
	if !p.enqueue(queuedCode{sender: s, code: Code{Digits: "123456", Expires: time.Now().Add(CodeTTL)}, dummy: dummy}) {
		t.Fatal("no room in an empty queue")
	}
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A provider that stumbles is tried again; one that refuses is not; and stopping
// waits for what is being sent. Time is the bubble's.
func TestCodesAreSentAgain(t *testing.T) {
	t.Parallel()
	again := errors.New("try again")
	for name, c := range map[string]struct {
		sender      *flaky
		dummy       bool
		sent, tries int32
	}{
		"at once":      {sender: &flaky{}, sent: 1, tries: 1},
		"the third":    {sender: &flaky{fails: 2, err: again}, sent: 1, tries: 3},
		"never":        {sender: &flaky{fails: 99, err: again}, sent: 0, tries: maxSends},
		"refused":      {sender: &flaky{fails: 1, err: fmt.Errorf("no: %w", ErrUndeliverable)}, sent: 0, tries: 1},
		"not meant to": {sender: &flaky{}, dummy: true, sent: 0, tries: 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			testQueue(t, c.sender, c.dummy)
			if c.sender.sent.Load() != c.sent || c.sender.tries.Load() != c.tries {
				t.Errorf("%s: sent %d in %d tries, want %d in %d", name, c.sender.sent.Load(), c.sender.tries.Load(), c.sent, c.tries)
			}
		})
	}
}

// stuck is a Sender that waits for the end of its context.
type stuck struct{}

func (stuck) Send(ctx context.Context, _ Code) error { <-ctx.Done(); return ctx.Err() }

// Guards against a provider that does not answer keeping the server from
// stopping, and against a queue without bounds.
func TestQueueOfCodesIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newCodeQueue(slog.New(slog.DiscardHandler))
		if p.enqueue(queuedCode{}) {
			t.Error("took a code before it was started")
		}
		p.start(t.Context())
		p.start(t.Context()) // harmless
		taken := 0
		for range maxQueuedCodes + 2*sendWorkers {
			if p.enqueue(queuedCode{sender: stuck{}, code: Code{Expires: time.Now().Add(CodeTTL)}}) {
				taken++
			}
		}
		if taken > maxQueuedCodes+sendWorkers {
			t.Errorf("%d codes taken", taken)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stop: %v", err)
		}
		if err := p.stop(ctx); err != nil {
			t.Errorf("second stop: %v", err)
		}
	})
}

// Guards against a flood of sign-ins that takes the memory and the cores from the chat:
// hashes on half of the cores, a bounded queue, and a plain refusal beyond.
func TestHashingIsBounded(t *testing.T) {
	t.Parallel()
	h, err := newHasher()
	if err != nil {
		t.Fatal(err)
	}
	for cores, want := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 16: 8} {
		if got := maxHashesAtOnce(cores); got != want {
			t.Errorf("on %d cores %d hashes at once, want %d", cores, got, want)
		}
	}
	if want := maxHashesAtOnce(runtime.GOMAXPROCS(0)); cap(h.slots) != want || h.coolsDown != (want == 1) {
		t.Errorf("%d hashes at once, want %d; rests: %t", cap(h.slots), want, h.coolsDown)
	}
	var releases []func()
	for range cap(h.slots) {
		release, err := h.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, release)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	for range maxQueuedHashes {
		waiting.Go(func() {
			if _, err := h.hash(ctx, "x"); !errors.Is(err, context.Canceled) {
				t.Errorf("waiting: %v", err)
			}
		})
	}
	waitfor.MustHold(t, "the queue is full", func() bool { return len(h.queue) == cap(h.queue) })
	_, err = h.matches(t.Context(), "x", "")
	if refusal, ok := errors.AsType[*chat.Error](err); !ok || refusal.Code != chat.CodeUnavailable {
		t.Errorf("beyond the queue: %v", err)
	}
	cancel()
	waiting.Wait()
	for _, release := range releases {
		release()
	}
	if hash, err := h.hash(t.Context(), "x"); err != nil || !strings.HasPrefix(hash, "$argon2id$") {
		t.Errorf("afterwards: %q, %v", hash, err)
	}
}

func TestPasswordRules(t *testing.T) {
	t.Parallel()
	for password, ok := range map[string]bool{
		"correct horse battery": true, "пароль-дня": true, "密码密码密码密码a": true, strings.Repeat("ab", 128): true,
		"short": false, "": false, "Password123": false, "aaaaaaaaaaaa": false, "anna1234": false, "Anna-anna": false, strings.Repeat("ab", 129): false,
	} {
		if err := checkPassword(password, "anna"); (err == nil) != ok {
			t.Errorf("%q: %v", password, err)
		}
	}
}

func TestTargets(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"+86 138-0013-8000": "+8613800138000", "0049 (30) 123456": "+4930123456", "13800138000": "", "+0123456789": "", "+12": "",
		"+1234567890123456": "", "+86138001380０0": "", "+86 13800138000;ext=1": "",
	} {
		if got, err := normalizePhone(in); got != want || (err == nil) != (want != "") {
			t.Errorf("phone %q: %q, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{
		"Anna.B+x@Example.COM": "anna.b+x@example.com", "anna@localhost": "", "Anna <anna@example.com>": "", "anna@example.com\r\nBcc: x@y.z": "",
		"a@b@c.de": "", "@example.com": "", "anna@例子.com": "", strings.Repeat("a", 250) + "@b.de": "", "a@b.de,c@d.ef": "",
	} {
		if got, err := normalizeMail(in); got != want || (err == nil) != (want != "") {
			t.Errorf("mail %q: %q, %v", in, got, err)
		}
	}
	for in, ok := range map[string]bool{
		"": true, "https://example.com/a.png?x=1": true, "media-id_1": true, "http://example.com/a.png": false, "javascript:alert(1)": false,
		"data:text/html,x": false, "https://u:p@example.com/": false, "https://example.com/\"onerror=": false, "//example.com/a": false,
	} {
		if err := CheckAvatar(in); (err == nil) != ok {
			t.Errorf("avatar %q: %v", in, err)
		}
	}
}

// Each wrong setting is refused with the flag that is to be changed.
func TestConfigNamesTheFlag(t *testing.T) {
	t.Parallel()
	for flag, c := range map[string]Config{
		"--registration":    {Registration: "maybe"},
		"--wechat-base-url": {WeChat: WeChat{BaseURL: "weixin"}},
		"--wechat-secret":   {WeChat: WeChat{AppID: "wx1"}},
		"--oidc-redirect":   {Redirects: []string{"app"}},
		"--oidc ":           {OIDC: []OIDC{{Name: "A B", Issuer: "https://x", ClientID: "c"}}},
		"--oidc a":          {OIDC: []OIDC{{Name: "a", Issuer: "x", ClientID: "c"}}},
		"--oidc b":          {OIDC: []OIDC{{Name: "b", Issuer: "https://x"}}},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
	good := Config{OIDC: []OIDC{{Name: "corp", Issuer: "https://id.example.com", ClientID: "c"}}, Redirects: []string{"https://app.example.com/x"}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}
