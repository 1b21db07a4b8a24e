package people

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"mynah/chat"
)

// Errors of code2session
// (https://developers.weixin.qq.com/miniprogram/dev/OpenApiDoc/user-login/code2Session.html).
const (
	wechatBusy       = -1    // try again later
	wechatBadCode    = 40029 // invalid code
	wechatUsedCode   = 40163 // code been used
	wechatBlocked    = 40226 // high-risk user
	wechatTooOften   = 45011 // a user's calls are limited to 100 a minute
	wechatPatience   = 5 * time.Second
	wechatMostAnswer = 64 << 10
)

var (
	errUpstreamAway = chat.Refuse(chat.CodeUnavailable, "WeChat does not answer right now. Try again.")
	errUpstreamOdd  = chat.Refuse(chat.CodeUpstream, "WeChat refused this server. Ask its operator to look at the log.")
)

// CheckWeChat proves a WeChat user by the code that wx.login gave to the
// mini-program. A code works once.
func (s *Service) CheckWeChat(ctx context.Context, code string) (Proof, error) {
	if s.cfg.WeChat.AppID == "" {
		return Proof{}, chat.Refuse(chat.CodeInvalid, "This server takes no sign-in with WeChat. Sign in another way.")
	}
	ctx, cancel := context.WithTimeout(ctx, wechatPatience)
	defer cancel()
	query := url.Values{
		"appid": {s.cfg.WeChat.AppID}, "secret": {s.cfg.WeChat.Secret},
		"js_code": {code}, "grant_type": {"authorization_code"},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.cfg.WeChat.BaseURL+"/sns/jscode2session?"+query.Encode(), http.NoBody)
	if err != nil {
		return Proof{}, errors.New("wechat: the base address is not one")
	}
	resp, err := s.http.Do(req)
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "wechat does not answer", slog.Any("error", withoutURL(err)))
		return Proof{}, errUpstreamAway
	}
	defer func() { _ = resp.Body.Close() }() // read only
	// WeChat answers 200 also for errors, and text/plain also for JSON.
	var answer struct {
		OpenID  string `json:"openid"`
		UnionID string `json:"unionid"`
		ErrCode int    `json:"errcode"`
		ErrMsg  string `json:"errmsg"`
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, wechatMostAnswer))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	if err == nil {
		err = json.Unmarshal(text, &answer)
	}
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "wechat does not answer", slog.Any("error", err))
		return Proof{}, errUpstreamAway
	}
	switch answer.ErrCode {
	case 0:
	case wechatBadCode, wechatUsedCode:
		return Proof{}, errProof
	case wechatBlocked:
		return Proof{}, chat.Refuse(chat.CodeNotAllowed, "WeChat has blocked this user from signing in.")
	case wechatTooOften:
		return Proof{}, chat.Refuse(chat.CodeRateLimited, "WeChat allows no more sign-ins of this user right now. Wait a minute.")
	case wechatBusy:
		return Proof{}, errUpstreamAway
	default: // 40013 invalid appid, 40125 invalid secret, …: the operator's to mend
		s.log.LogAttrs(ctx, slog.LevelError, "wechat refuses this server", slog.Int("errcode", answer.ErrCode), slog.String("errmsg", answer.ErrMsg))
		return Proof{}, errUpstreamOdd
	}
	if answer.OpenID == "" || !validSubject(answer.OpenID) || !validSubject(answer.UnionID) {
		s.log.LogAttrs(ctx, slog.LevelError, "wechat answered without an openid")
		return Proof{}, errUpstreamOdd
	}
	return Proof{Provider: ProviderWeChat, Subject: answer.OpenID, Alias: answer.UnionID}, nil
}

// maxSubject is the longest subject of an identity, in bytes.
const maxSubject = 320
