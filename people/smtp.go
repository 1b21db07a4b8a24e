package people

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"strconv"
	"strings"

	gomail "github.com/wneessen/go-mail"
)

// SMTP sends codes by mail. Make it with NewSMTP.
type SMTP struct {
	host string
	from string
	opts []gomail.Option
}

// NewSMTP reads an address like
//
//	smtp://user:password@mail.example.com:587?from=chat@example.com
//	smtps://user:password@mail.example.com?from=Chat+<chat@example.com>
//
// smtp upgrades by STARTTLS, which must succeed unless the host is this machine
// or tls=off is added; smtps speaks TLS from the start. from is required. The
// error does not hold the password.
func NewSMTP(address string) (*SMTP, error) {
	bad := func(why string) error {
		return fmt.Errorf("--smtp-url: %s; give smtp://user:password@host:587?from=chat@example.com", why)
	}
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		return nil, bad("not an address") // url's error would quote the password
	}
	from := u.Query().Get("from")
	if _, err := mail.ParseAddress(from); err != nil {
		return nil, bad("from is missing or is not a mail address")
	}
	s := &SMTP{host: u.Hostname(), from: from, opts: []gomail.Option{gomail.WithTimeout(sendTimeout)}}
	port := u.Port()
	mayBeClear := false // TLS is not demanded
	switch u.Scheme {
	case "smtps":
		s.opts = append(s.opts, gomail.WithSSL())
		if port == "" {
			port = "465"
		}
	case "smtp":
		policy := gomail.TLSMandatory
		if ip := net.ParseIP(s.host); s.host == "localhost" || ip != nil && ip.IsLoopback() {
			policy = gomail.TLSOpportunistic
		}
		switch u.Query().Get("tls") {
		case "":
		case "off":
			policy = gomail.NoTLS
		default:
			return nil, bad("tls can only be off")
		}
		mayBeClear = policy != gomail.TLSMandatory
		s.opts = append(s.opts, gomail.WithTLSPolicy(policy))
		if port == "" {
			port = "587"
		}
	default:
		return nil, bad("the scheme must be smtp or smtps")
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 {
		return nil, bad("the port is not a number")
	}
	s.opts = append(s.opts, gomail.WithPort(n))
	if password, ok := u.User.Password(); ok {
		auth := gomail.SMTPAuthAutoDiscover
		if mayBeClear {
			// The strongest way is chosen under TLS only; where there may be
			// none, by the operator's word, the common one.
			auth = gomail.SMTPAuthPlainNoEnc
		}
		s.opts = append(s.opts, gomail.WithSMTPAuth(auth),
			gomail.WithUsername(u.User.Username()), gomail.WithPassword(password))
	}
	return s, nil
}

// mailSubjects are in the two languages of most users.
var mailSubjects = map[string]string{
	PurposeSignIn: "Your sign-in code · 登录验证码",
	PurposeLink:   "Your code to link this address · 绑定验证码",
	PurposeReset:  "Your code for a new password · 重置密码验证码",
}

// Send sends the code by mail. A permanent refusal (5xx) wraps ErrUndeliverable.
func (s *SMTP) Send(ctx context.Context, code Code) error {
	m := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	if err := m.From(s.from); err != nil {
		return fmt.Errorf("mail: sender: %w", err)
	}
	if err := m.To(code.To); err != nil {
		return fmt.Errorf("mail: %w: recipient", ErrUndeliverable)
	}
	m.Subject(mailSubjects[code.Purpose])
	m.SetBodyString(gomail.TypeTextPlain, strings.Join([]string{
		code.Digits,
		"",
		"This code is valid for five minutes. Give it to nobody: nobody of ours will ask for it.",
		"If you did not ask for it, ignore this message.",
		"",
		"验证码五分钟内有效，请勿告诉任何人。如非本人操作，请忽略本邮件。",
		"",
	}, "\r\n"))
	client, err := gomail.NewClient(s.host, s.opts...)
	if err != nil {
		return fmt.Errorf("mail: %w", err)
	}
	if err := client.DialAndSendWithContext(ctx, m); err != nil {
		if refused, ok := errors.AsType[*gomail.SendError](err); ok && !refused.IsTemp() && refused.ErrorCode() >= 500 {
			return fmt.Errorf("mail: %w: the server answered %d", ErrUndeliverable, refused.ErrorCode())
		}
		return fmt.Errorf("mail: %w", err)
	}
	return nil
}
