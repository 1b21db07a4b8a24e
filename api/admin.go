package api

import "context"

func (a *API) disableAccount(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, a.accounts.SetDisabled(ctx, in.ID, true, false)
}

func (a *API) enableAccount(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, a.accounts.SetDisabled(ctx, in.ID, false, false)
}

type rotateInput struct {
	Body struct {
		Distrust bool `json:"distrust,omitempty" doc:"Refuse at once every token that an older key signed, devices' tokens included: for a key that may have been stolen"`
	}
}

type rotated struct {
	KID string `json:"kid" doc:"The key that signs from now on"`
}

func (a *API) rotateKeys(ctx context.Context, in *rotateInput) (*body[rotated], error) {
	kid, err := a.cfg.Keys.Rotate(ctx, in.Body.Distrust)
	if err != nil {
		return nil, err
	}
	return answer(rotated{KID: kid}), nil
}
