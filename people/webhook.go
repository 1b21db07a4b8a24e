package people

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Webhook sends codes as text messages by way of an HTTP service of the
// operator's, which knows their SMS provider. It posts
//
//	{"to":"+8613800138000","purpose":"signin","code":"123456","expires":1764000000}
//
// with the headers X-Mynah-Timestamp (seconds since 1970) and X-Mynah-Signature:
// sha256= and the hexadecimal HMAC-SHA256, with the shared secret, of the
// timestamp, a dot and the body. 2xx means that the message is on its way; 408,
// 425, 429 and 5xx are tried again, any other status is final. Redirects are not
// followed. Make it with NewWebhook.
type Webhook struct {
	url    string
	secret []byte
	client *http.Client
	now    func() time.Time
}

// NewWebhook returns a Webhook for --sms-webhook and --sms-webhook-secret. client
// may be nil.
func NewWebhook(address, secret string, client *http.Client) (*Webhook, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, errors.New("--sms-webhook: give an http or https address")
	}
	if len(secret) < 16 {
		return nil, errors.New("--sms-webhook-secret: give at least 16 characters, the same as at the receiving end, which must check the signature")
	}
	if client == nil {
		client = &http.Client{Timeout: sendTimeout}
	}
	direct := *client
	direct.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Webhook{url: address, secret: []byte(secret), client: &direct, now: time.Now}, nil
}

// Send posts the code.
func (w *Webhook) Send(ctx context.Context, code Code) error {
	body, err := json.Marshal(struct {
		To      string `json:"to"`
		Purpose string `json:"purpose"`
		Code    string `json:"code"`
		Expires int64  `json:"expires"`
	}{code.To, code.Purpose, code.Digits, code.Expires.Unix()})
	if err != nil {
		return fmt.Errorf("sms: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return errors.New("sms: the address of the webhook is not one")
	}
	stamp := strconv.FormatInt(w.now().Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Mynah-Timestamp", stamp)
	req.Header.Set("X-Mynah-Signature", "sha256="+w.sign(stamp, body))
	resp, err := w.client.Do(req)
	if err != nil {
		return fmt.Errorf("sms: %w", withoutURL(err))
	}
	defer func() { _ = resp.Body.Close() }()                    // read only
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4096)) // so that the connection can be used again
	switch status := resp.StatusCode; {
	case status/100 == 2:
		return nil
	case status/100 == 5, status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests:
		return fmt.Errorf("sms: the webhook answered %d", status)
	default:
		return fmt.Errorf("sms: %w: the webhook answered %d", ErrUndeliverable, status)
	}
}

func (w *Webhook) sign(stamp string, body []byte) string {
	mac := hmac.New(sha256.New, w.secret)
	_, _ = mac.Write([]byte(stamp + ".")) // never fails
	_, _ = mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

// withoutURL takes the URL out of an http.Client's error: it may hold a secret.
func withoutURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}
