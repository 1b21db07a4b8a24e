package api

import (
	"context"
	"errors"
	"log/slog"

	"mynah/directory/changes"
	"mynah/schema"
)

// waitsForBrokers are the calls after which somebody may do more or less than before, by the
// name of the operation. Their answers come when the brokers know, so that who has been
// removed gets nothing that is published after the answer, and who has joined gets it.
var waitsForBrokers = map[string]bool{
	"kickMember": true, "banMember": true, "unbanMember": true, "leaveGroup": true, "dissolveGroup": true,
	"joinGroup": true, "joinByLink": true, "approveJoin": true, "createGroup": true, "editGroup": true, "editMember": true, "transferGroup": true,
	"block": true, "unblock": true, "setPrivacy": true, "acceptContact": true, "askContact": true, "removeContact": true,
	"endSession": true, "endOtherSessions": true, "changePassword": true, "resetPassword": true, "deleteMe": true,
	"createDevice": true, "renewDevice": true, "disableDevice": true, "enableDevice": true, "deleteDevice": true,
	"disableAccount": true, "enableAccount": true,
}

// awaitApplied waits, after the call has done what it does, until the brokers have
// applied it; not longer than changes.ApplyLimit, and what it has done stays done. in is
// the call's input.
func (a *API) awaitApplied(ctx context.Context, r *route, in any) {
	if !waitsForBrokers[r.OperationID] {
		return
	}
	var cleared func(context.Context) (bool, error)
	if group, ok := in.(*IDPath); ok && r.OperationID == "dissolveGroup" {
		// Its members go when they have the notice about it.
		cleared = func(ctx context.Context) (is bool, err error) {
			err = a.db.Pool().QueryRow(ctx, schema.IsCleared, group.ID).Scan(&is)
			return is, err
		}
	}
	err := a.barrier.Wait(ctx, cleared)
	if errors.Is(err, changes.ErrNotApplied) && ctx.Err() == nil {
		a.log.LogAttrs(ctx, slog.LevelWarn, "answered before all brokers had applied a change", slog.String("operation", r.OperationID), slog.Any("error", err))
	}
}
