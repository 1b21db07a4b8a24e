package broker

import (
	"log/slog"
	"sync/atomic"

	"mynah/authhook"
	"mynah/broker/delivery"
)

// memberships keeps sessions in the groups of their subjects as the directory changes.
type memberships struct {
	rights *rights
	conns  *connections
	engine *delivery.Engine
	logger *slog.Logger

	// changes counts what the directory said about who is in which group.
	changes atomic.Uint64
}

// changed follows the directory: whoever has joined a group gets its messages from now
// on, whoever has left gets no more. Accounts that were disabled are the auth hook's.
func (m *memberships) changed(ch authhook.Change) {
	switch ch.Kind {
	case authhook.ChangeJoined, authhook.ChangeLeft:
		m.changes.Add(1) // before looking at who is there: see refreshIfStale
		for _, s := range m.engine.Sessions(ch.Subject) {
			var err error
			if c := m.conns.of(s.Attached()); c != nil {
				err = m.refresh(c)
			} else {
				err = s.ChangeGroup(ch.Group, ch.Kind == authhook.ChangeJoined)
			}
			if err != nil {
				m.logger.Error("cannot bring a session's groups up to date", "subject", ch.Subject, "group", ch.Group, "error", err)
			}
		}
	case authhook.ChangeAll:
		m.changes.Add(1)
		m.conns.each(func(c *conn) bool {
			if err := m.refresh(c); err != nil {
				m.logger.Error("cannot bring a session's groups up to date", "subject", c.subject(), "error", err)
			}
			return m.rights.ctx.Err() == nil
		})
	case authhook.ChangeRights, authhook.ChangeDisabled:
		// Rights are asked for with every publish; the auth hook ends connections.
	}
}

// refresh asks which groups a connected subject is in, until the answer is not
// older than the last change.
func (m *memberships) refresh(c *conn) error {
	for {
		before := m.changes.Load()
		groups, err := m.rights.groups(m.rights.identity(c))
		if err != nil {
			return err
		}
		if err := c.session.SetGroups(groups); err != nil || m.changes.Load() == before {
			return err
		}
	}
}

// refreshIfStale is called when a session has been told groups that were asked for when
// changes was before. A change since then may have come to the session first, and
// been overwritten.
func (m *memberships) refreshIfStale(c *conn, before uint64) {
	if m.changes.Load() == before {
		return
	}
	if err := m.refresh(c); err != nil {
		m.logger.Error("cannot bring a session's groups up to date", "subject", c.subject(), "error", err)
	}
}
