package api

import (
	"context"
	"errors"

	"mynah/chat"
	"mynah/people"
)

// adminHandlers are for operators.
type adminHandlers struct {
	people *people.Service
	keys   *people.Keys
}

type disableInput struct {
	IDPath
	Body struct {
		Unknown bool `json:"unknown,omitempty" doc:"Also if there is no such account: whoever comes with a token for the id, which another issuer signed, is refused from the first time on, and nobody can register it"`
	}
}

func (h *adminHandlers) disableAccount(ctx context.Context, in *disableInput) (*empty, error) {
	if in.Body.Unknown {
		return nil, h.people.Accounts.DisableUnknown(ctx, in.ID)
	}
	err := h.people.Accounts.SetDisabled(ctx, in.ID, true, false)
	if refusal, ok := errors.AsType[*chat.Error](err); ok && refusal.Code == chat.CodeNotFound {
		return nil, chat.Refuse(chat.CodeNotFound, `There is no such account. To refuse somebody who has not come yet, send {"unknown": true}.`)
	}
	return nil, err
}

func (h *adminHandlers) enableAccount(ctx context.Context, in *IDPath) (*empty, error) {
	return nil, h.people.Accounts.SetDisabled(ctx, in.ID, false, false)
}

type rotateInput struct {
	Body struct {
		Distrust bool `json:"distrust,omitempty" doc:"Refuse at once every token that an older key signed, devices' tokens included: for a key that may have been stolen"`
	}
}

type rotated struct {
	KID string `json:"kid" doc:"The key that signs from now on"`
}

func (h *adminHandlers) rotateKeys(ctx context.Context, in *rotateInput) (*body[rotated], error) {
	kid, err := h.keys.Rotate(ctx, in.Body.Distrust)
	if err != nil {
		return nil, err
	}
	return answer(rotated{KID: kid}), nil
}
