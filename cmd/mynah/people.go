package main

import (
	"errors"
	"log/slog"
	"maps"
	"slices"

	"mynah/api"
	"mynah/people"
)

// People says how people get accounts and sign in. The API checks the values and
// names the flags.
type People struct {
	PublicURL    string `name:"public-url" placeholder:"URL" help:"The address under which clients reach this server: https://chat.example.com. Needed for --oidc; the issuer of the API's tokens."`
	Registration string `enum:",open,assigned,closed" default:"" placeholder:"KIND" help:"Who may have an account: everybody (open, the default), everybody with an id that the server chooses (assigned), nobody new (closed). With a sign-in service of your own that chooses ids say assigned or closed: while it is open a stranger may register the id of somebody whom your service has not sent here yet, and is them from then on."`

	AddressLimits float64 `name:"address-limits" default:"${address_limits}" placeholder:"FACTOR" help:"How many times the usual one address may sign in (300 in a quarter of an hour), register and ask for codes (60 each in an hour). Take more where many people share an address: a school, a carrier."`

	SMTPURL          SecretURL `name:"smtp-url" placeholder:"URL" help:"Sends one-time codes by mail: smtp://user:password@host:587?from=chat@example.com."`
	SMSWebhook       SecretURL `name:"sms-webhook" placeholder:"URL" help:"Is asked to send one-time codes by text message."`
	SMSWebhookSecret Secret    `name:"sms-webhook-secret" placeholder:"SECRET" help:"Signs what is sent to --sms-webhook."`

	WeChatAppID   string `name:"wechat-app-id" placeholder:"ID" help:"Lets people sign in from this WeChat mini-program."`
	WeChatSecret  Secret `name:"wechat-secret" placeholder:"SECRET" help:"Its secret."`
	WeChatBaseURL string `name:"wechat-base-url" default:"${wechat_base_url}" placeholder:"URL" help:"Where code2session is asked."`

	OIDC         map[string]string `name:"oidc" placeholder:"NAME=ISSUER;..." help:"OpenID Connect providers, by a name of yours: google=https://accounts.google.com."`
	OIDCClientID map[string]string `name:"oidc-client-id" placeholder:"NAME=ID;..." help:"The client id at each provider."`
	OIDCSecret   SecretPairs       `name:"oidc-secret" placeholder:"NAME=SECRET;..." help:"The client secret at each provider that gave one."`
	OIDCRedirect []string          `name:"oidc-redirect" placeholder:"URL,..." help:"Where people may be sent after they have signed in with OpenID Connect, besides --public-url."`
}

// warn says what may be overlooked: with tokens that others sign, ids are given out
// in two places. Who names --registration has decided.
func (o *People) warn(i Identity, log *slog.Logger) {
	if o.Registration == "" && (i.JWTSecret != "" || len(i.JWKS) > 0) {
		log.Warn("--registration is not set, so anybody may register any id that has not been here yet, also one that tokens signed with --jwt-secret or --jwks will name later; set it to assigned or closed if such tokens are signed for ids of your choice, to open if not")
	}
}

// validate checks what can be checked without asking anybody, before anything is
// started.
func (o *People) validate() error {
	people, err := o.accounts(false, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	settings := api.Config{People: people, PublicURL: o.PublicURL, AddressLimits: o.AddressLimits}
	return settings.ValidateSettings()
}

// accounts returns what the API wants. With dev codes are logged where nothing is
// set to send them.
func (o *People) accounts(dev bool, log *slog.Logger) (people.Config, error) {
	cfg := people.Config{
		Registration: people.Registration(o.Registration),
		WeChat:       people.WeChat{AppID: o.WeChatAppID, Secret: o.WeChatSecret.Reveal(), BaseURL: o.WeChatBaseURL},
		Redirects:    o.OIDCRedirect,
		PublicURL:    o.PublicURL,
	}
	var errs []error
	if dev {
		cfg.Mail, cfg.SMS = people.LogSender{Log: log}, people.LogSender{Log: log}
	}
	if o.SMTPURL != "" {
		smtp, err := people.NewSMTP(o.SMTPURL.Reveal())
		errs = append(errs, err)
		cfg.Mail = smtp
	}
	switch {
	case o.SMSWebhook != "":
		webhook, err := people.NewWebhook(o.SMSWebhook.Reveal(), o.SMSWebhookSecret.Reveal(), nil)
		errs = append(errs, err)
		cfg.SMS = webhook
	case o.SMSWebhookSecret != "":
		errs = append(errs, refuse("sms-webhook-secret", "is of no use without --sms-webhook; give both"))
	}
	for _, name := range slices.Sorted(maps.Keys(o.OIDC)) {
		cfg.OIDC = append(cfg.OIDC, people.OIDC{
			Name: name, Issuer: o.OIDC[name], ClientID: o.OIDCClientID[name], Secret: o.OIDCSecret[name].Reveal(),
		})
	}
	for _, name := range slices.Concat(slices.Sorted(maps.Keys(o.OIDCClientID)), slices.Sorted(maps.Keys(o.OIDCSecret))) {
		if _, ok := o.OIDC[name]; !ok {
			errs = append(errs, refuse("oidc", "has no provider %s, for which --oidc-client-id or --oidc-secret is given", name))
		}
	}
	return cfg, errors.Join(errs...)
}
