package api

import (
	"context"
	"time"

	"mynah/people"
)

// signInHandlers are the ways to sign in and to register.
type signInHandlers struct {
	people *people.Service
	cfg    *Config
}

// signedIn is the answer to every way of signing in, and to refreshing.
type signedIn struct {
	Account      string `json:"account" doc:"The id of who is signed in"`
	Session      string `json:"session" doc:"The id of the signed-in device, see /v1/me/sessions"`
	AccessToken  string `json:"access_token" doc:"A JWT: Authorization: Bearer … here, the password in MQTT"`
	TokenType    string `json:"token_type" enum:"Bearer"`
	ExpiresIn    int    `json:"expires_in" doc:"Seconds until the access token expires"`
	RefreshToken string `json:"refresh_token" doc:"For /v1/sessions/refresh. Each is used once"`
	DeviceToken  string `json:"device_token,omitempty" doc:"To be kept on the device and shown at its next sign-in"`
	Created      bool   `json:"created,omitempty" doc:"Whether the account has just been made"`
}

type signedInOutput struct {
	Location string `header:"Location" json:"-"`
	Body     signedIn
}

func signedInAnswer(t *people.Tokens, created bool) *signedInOutput {
	return &signedInOutput{Location: "/v1/me/sessions/" + t.Session, Body: signedIn{
		Account: t.Account, Session: t.Session, AccessToken: t.Access, TokenType: "Bearer",
		ExpiresIn: int(t.AccessTTL / time.Second), RefreshToken: t.Refresh, DeviceToken: t.Device, Created: created,
	}}
}

// DeviceField is in every way of signing in.
type DeviceField struct {
	DeviceToken string `json:"device_token,omitempty" maxLength:"64" doc:"What an earlier sign-in of the same person on this device answered: then strangers who guess their password do not keep this device out"`
	Device      string `json:"device,omitempty" maxLength:"64" doc:"What the person calls this device, for the list of devices" example:"Anna's phone"`
}

func client(ctx context.Context, d DeviceField) people.Client {
	return people.Client{Address: requestOf(ctx).address, Device: d.Device, DeviceToken: d.DeviceToken}
}

// The proofs. Each is a body of its own, for signing in and for linking. They are
// exported for huma alone, which does not look into embedded types otherwise.
type (
	// PasswordProof is an id and its password.
	PasswordProof struct {
		ID       string `json:"id" minLength:"1" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$"`
		Password string `json:"password" minLength:"1" maxLength:"256" format:"password"`
	}
	// CodeProof is a code that was sent, and its challenge.
	CodeProof struct {
		Challenge string `json:"challenge" minLength:"1" maxLength:"64" doc:"What /v1/codes answered"`
		Code      string `json:"code" minLength:"6" maxLength:"6" pattern:"^[0-9]{6}$" doc:"The six digits"`
	}
	// WeChatProof is what a mini-program gets from WeChat.
	WeChatProof struct {
		Code string `json:"code" minLength:"1" maxLength:"256" doc:"What wx.login gave"`
	}
	// TicketProof is what a sign-in with OpenID Connect ends in.
	TicketProof struct {
		Ticket   string `json:"ticket" minLength:"1" maxLength:"64" doc:"What the redirect address was given"`
		Verifier string `json:"verifier,omitempty" maxLength:"128" doc:"Of the challenge, if the sign-in was begun with one"`
	}
)

type registerInput struct {
	Body struct {
		DeviceField
		ID       string `json:"id,omitempty" maxLength:"64" pattern:"^[A-Za-z0-9_.~-]+$" doc:"Leave it out to have one chosen"`
		Password string `json:"password" minLength:"8" maxLength:"256" format:"password"`
		Name     string `json:"name,omitempty" maxLength:"64"`
	}
}

func (h *signInHandlers) register(ctx context.Context, in *registerInput) (*signedInOutput, error) {
	t, err := h.people.Register(ctx, in.Body.ID, in.Body.Password, in.Body.Name, client(ctx, in.Body.DeviceField))
	if err != nil {
		return nil, err
	}
	return signedInAnswer(t, true), nil
}

type codeInput struct {
	Body struct {
		Channel string `json:"channel" enum:"phone,mail"`
		To      string `json:"to" minLength:"3" maxLength:"254" doc:"A phone number with + and the country's code, or a mail address"`
		Purpose string `json:"purpose" enum:"signin,link,reset"`
	}
}

type codeAsked struct {
	Challenge string `json:"challenge" doc:"To be shown together with the code"`
	ExpiresIn int    `json:"expires_in" doc:"Seconds until the code fits no more"`
}

func (h *signInHandlers) askCode(ctx context.Context, in *codeInput) (*body[codeAsked], error) {
	challenge, err := h.people.Codes.Ask(ctx, in.Body.Channel, in.Body.To, in.Body.Purpose)
	if err != nil {
		return nil, err
	}
	return answer(codeAsked{Challenge: challenge, ExpiresIn: int(people.CodeTTL / time.Second)}), nil
}

// signIn opens a session for a proof, or passes on why there is none.
func (h *signInHandlers) signIn(ctx context.Context, p people.Proof, err error, d DeviceField) (*signedInOutput, error) {
	if err != nil {
		return nil, err
	}
	t, created, err := h.people.SignIn(ctx, p, client(ctx, d))
	if err != nil {
		return nil, err
	}
	return signedInAnswer(t, created), nil
}

type signInPasswordInput struct {
	Body struct {
		PasswordProof
		DeviceField
	}
}

func (h *signInHandlers) signInPassword(ctx context.Context, in *signInPasswordInput) (*signedInOutput, error) {
	p, err := h.people.Passwords.Check(ctx, in.Body.ID, in.Body.Password, client(ctx, in.Body.DeviceField))
	return h.signIn(ctx, p, err, in.Body.DeviceField)
}

type signInCodeInput struct {
	Body struct {
		CodeProof
		DeviceField
	}
}

func (h *signInHandlers) signInCode(ctx context.Context, in *signInCodeInput) (*signedInOutput, error) {
	p, err := h.people.Codes.Check(ctx, in.Body.Challenge, in.Body.Code, people.PurposeSignIn)
	return h.signIn(ctx, p, err, in.Body.DeviceField)
}

type signInWeChatInput struct {
	Body struct {
		WeChatProof
		DeviceField
	}
}

func (h *signInHandlers) signInWeChat(ctx context.Context, in *signInWeChatInput) (*signedInOutput, error) {
	p, err := h.people.WeChat.Check(ctx, in.Body.Code)
	return h.signIn(ctx, p, err, in.Body.DeviceField)
}

type signInTicketInput struct {
	Body struct {
		TicketProof
		DeviceField
	}
}

func (h *signInHandlers) signInTicket(ctx context.Context, in *signInTicketInput) (*signedInOutput, error) {
	p, err := h.people.OIDC.Check(ctx, in.Body.Ticket, in.Body.Verifier)
	return h.signIn(ctx, p, err, in.Body.DeviceField)
}

type refreshInput struct {
	Body struct {
		RefreshToken string `json:"refresh_token" minLength:"1" maxLength:"128"`
	}
}

func (h *signInHandlers) refresh(ctx context.Context, in *refreshInput) (*body[signedIn], error) {
	t, err := h.people.Sessions.Refresh(ctx, in.Body.RefreshToken, client(ctx, DeviceField{}))
	if err != nil {
		return nil, err
	}
	return answer(signedInAnswer(t, false).Body), nil
}

type resetInput struct {
	Body struct {
		CodeProof
		Password string `json:"password" minLength:"8" maxLength:"256" format:"password" doc:"The new one"`
	}
}

func (h *signInHandlers) resetPassword(ctx context.Context, in *resetInput) (*empty, error) {
	return nil, h.people.Passwords.Reset(ctx, in.Body.Challenge, in.Body.Code, in.Body.Password)
}

// ways tells a sign-in page what to offer.
type ways struct {
	Registration string   `json:"registration" enum:"open,assigned,closed"`
	Methods      []string `json:"methods" nullable:"false" doc:"Of password, phone, mail, wechat"`
	OIDC         []string `json:"oidc" nullable:"false" doc:"Names of OpenID Connect providers"`
}

func (h *signInHandlers) ways(context.Context, *empty) (*body[ways], error) {
	c := &h.cfg.People
	w := ways{Registration: string(c.Registration), Methods: []string{people.ProviderPassword}, OIDC: h.people.OIDC.Providers()}
	if c.SMS != nil {
		w.Methods = append(w.Methods, people.ProviderPhone)
	}
	if c.Mail != nil {
		w.Methods = append(w.Methods, people.ProviderMail)
	}
	if c.WeChat.AppID != "" {
		w.Methods = append(w.Methods, people.ProviderWeChat)
	}
	return answer(w), nil
}
