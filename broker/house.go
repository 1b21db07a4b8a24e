package broker

import (
	"context"
	"errors"
	"math"
	"strconv"
	"time"

	"mynah/authhook"
	"mynah/broker/msglog"
)

// LastTopic is where the broker tells, retained, the seq of the newest message in the
// log, as decimal text. Roles that may read $SYS/# can measure by it how far behind
// they are.
const LastTopic = "$SYS/mynah/log/last"

// keepHouse does what is due every so often, until the broker stops.
func (b *Broker) keepHouse() {
	second, minute, system := time.NewTicker(time.Second), time.NewTicker(time.Minute), time.NewTicker(b.cfg.SystemInterval)
	defer second.Stop()
	defer minute.Stop()
	defer system.Stop()
	b.tellSystem()
	var told uint64
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-second.C:
			if _, last := b.log.Bounds(); last != told {
				told = last
				b.topics.PublishLatest(LastTopic, strconv.AppendUint(nil, last, 10), 0)
			}
		case <-system.C:
			b.tellSystem()
		case <-minute.C:
			b.trim()
			b.topics.ForgetExpired(time.Now().UnixMilli())
		}
	}
}

// trim forgets messages that are old enough, and archived.
func (b *Broker) trim() {
	if b.cfg.Retention == (msglog.Retention{}) {
		return
	}
	archived := uint64(math.MaxUint64)
	if !b.cfg.NoArchive {
		// As long as no archiver has ever come, nothing may be forgotten.
		archived, _ = b.engine.Archived()
	}
	upto, err := b.log.Expired(b.ctx, b.cfg.Retention)
	if upto = min(upto, archived); err == nil && upto > 0 {
		err = b.log.Compact(b.ctx, upto)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		b.logger.Error("cannot trim the message log", "error", err)
	}
}

// changed follows the directory: whoever has joined a group gets its messages from now
// on, whoever has left gets no more. Accounts that were disabled are the auth hook's.
func (b *Broker) changed(ch authhook.Change) {
	switch ch.Kind {
	case authhook.ChangeJoined, authhook.ChangeLeft:
		b.memberships.Add(1) // before looking at who is there: see regroupSince
		for _, s := range b.engine.Sessions(ch.Subject) {
			var err error
			if c, ok := b.conns.Load(s.Attached()); ok {
				err = b.regroup(c.(*conn)) //nolint:forcetypeassert // conns holds nothing else
			} else {
				err = s.ChangeGroup(ch.Group, ch.Kind == authhook.ChangeJoined)
			}
			if err != nil {
				b.logger.Error("cannot bring a session's groups up to date", "subject", ch.Subject, "group", ch.Group, "error", err)
			}
		}
	case authhook.ChangeAll:
		b.memberships.Add(1)
		b.conns.Range(func(_, v any) bool {
			c := v.(*conn) //nolint:forcetypeassert // conns holds nothing else
			if err := b.regroup(c); err != nil {
				b.logger.Error("cannot bring a session's groups up to date", "subject", c.subject(), "error", err)
			}
			return b.ctx.Err() == nil
		})
	case authhook.ChangeRights, authhook.ChangeDisabled:
		// Rights are asked for with every publish; the auth hook ends connections.
	}
}

// regroup asks anew which groups a connected subject is in, until the answer is not
// older than the last change.
func (b *Broker) regroup(c *conn) error {
	for {
		before := b.memberships.Load()
		groups, err := b.groups(b.identity(c))
		if err != nil {
			return err
		}
		if err := c.session.SetGroups(groups); err != nil || b.memberships.Load() == before {
			return err
		}
	}
}

// regroupSince is called when a session has been told groups that were asked for when
// memberships was before. A change since then may have come to the session first, and
// been overwritten.
func (b *Broker) regroupSince(c *conn, before uint64) {
	if b.memberships.Load() == before {
		return
	}
	if err := b.regroup(c); err != nil {
		b.logger.Error("cannot bring a session's groups up to date", "subject", c.subject(), "error", err)
	}
}
