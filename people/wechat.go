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

// WeChatLogin proves WeChat's users.
type WeChatLogin struct {
	*store
	http *http.Client
}

// Errors of code2session
// (https://developers.weixin.qq.com/miniprogram/dev/OpenApiDoc/user-login/code2Session.html).
const (
	wechatBusy      = -1    // try again later
	wechatBadCode   = 40029 // invalid code
	wechatUsedCode  = 40163 // code been used
	wechatBlocked   = 40226 // high-risk user
	wechatTooOften  = 45011 // a user's calls are limited to 100 a minute
	wechatTimeout   = 5 * time.Second
	wechatMaxAnswer = 64 << 10
)

var (
	errWeChatAway    = chat.Refuse(chat.CodeUnavailable, "WeChat does not answer right now. Try again.")
	errWeChatRefuses = chat.Refuse(chat.CodeUpstream, "WeChat refused this server. Ask its operator to look at the log.")
)

// Check proves a WeChat user by the code that wx.login gave to the
// mini-program. A code works once.
func (w *WeChatLogin) Check(ctx context.Context, code string) (Proof, error) {
	if w.cfg.WeChat.AppID == "" {
		return Proof{}, chat.Refuse(chat.CodeInvalid, "This server takes no sign-in with WeChat. Sign in another way.")
	}
	ctx, cancel := context.WithTimeout(ctx, wechatTimeout)
	defer cancel()
	query := url.Values{
		"appid": {w.cfg.WeChat.AppID}, "secret": {w.cfg.WeChat.Secret},
		"js_code": {code}, "grant_type": {"authorization_code"},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.cfg.WeChat.BaseURL+"/sns/jscode2session?"+query.Encode(), http.NoBody)
	if err != nil {
		return Proof{}, errors.New("wechat: the base address is not one")
	}
	resp, err := w.http.Do(req)
	if err != nil {
		w.log.LogAttrs(ctx, slog.LevelWarn, "wechat does not answer", slog.Any("error", withoutURL(err)))
		return Proof{}, errWeChatAway
	}
	defer func() { _ = resp.Body.Close() }() // read only
	// WeChat answers 200 also for errors, and text/plain also for JSON.
	var answer struct {
		OpenID  string `json:"openid"`
		UnionID string `json:"unionid"`
		ErrCode int    `json:"errcode"`
		ErrMsg  string `json:"errmsg"`
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, wechatMaxAnswer))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", resp.StatusCode)
	}
	if err == nil {
		err = json.Unmarshal(text, &answer)
	}
	if err != nil {
		w.log.LogAttrs(ctx, slog.LevelWarn, "wechat does not answer", slog.Any("error", err))
		return Proof{}, errWeChatAway
	}
	switch answer.ErrCode {
	case 0:
	case wechatBadCode, wechatUsedCode:
		return Proof{}, errWrongProof
	case wechatBlocked:
		return Proof{}, chat.Refuse(chat.CodeNotAllowed, "WeChat has blocked this user from signing in.")
	case wechatTooOften:
		return Proof{}, chat.Refuse(chat.CodeRateLimited, "WeChat allows no more sign-ins of this user right now. Wait a minute.")
	case wechatBusy:
		return Proof{}, errWeChatAway
	default: // 40013 invalid appid, 40125 invalid secret, …: the operator's to mend
		w.log.LogAttrs(ctx, slog.LevelError, "wechat refuses this server", slog.Int("errcode", answer.ErrCode), slog.String("errmsg", answer.ErrMsg))
		return Proof{}, errWeChatRefuses
	}
	if answer.OpenID == "" || !validSubject(answer.OpenID) || !validSubject(answer.UnionID) {
		w.log.LogAttrs(ctx, slog.LevelError, "wechat answered without an openid")
		return Proof{}, errWeChatRefuses
	}
	return Proof{Provider: ProviderWeChat, Subject: answer.OpenID, Alias: answer.UnionID}, nil
}
