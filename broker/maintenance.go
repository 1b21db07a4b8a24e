package broker

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"strconv"
	"time"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/pubsub"
)

// LastTopic is where the broker tells, retained, the seq of the newest message in the
// log, as decimal text. Roles that may read $SYS/# can measure by it how far behind
// they are.
const LastTopic = "$SYS/mynah/log/last"

// run does the periodic work until the broker stops.
func (m *maintenance) run() {
	second, minute, system := time.NewTicker(time.Second), time.NewTicker(time.Minute), time.NewTicker(m.interval)
	defer second.Stop()
	defer minute.Stop()
	defer system.Stop()
	m.publishSystem()
	var published uint64
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-second.C:
			if _, last := m.log.Bounds(); last != published {
				published = last
				m.topics.PublishLatest(LastTopic, strconv.AppendUint(nil, last, 10), 0)
			}
		case <-system.C:
			m.publishSystem()
		case <-minute.C:
			m.trim()
			m.topics.ForgetExpired(time.Now().UnixMilli())
		}
	}
}

// maintenance is the broker's periodic work: old messages leave the log, and its figures are
// published.
type maintenance struct {
	ctx       context.Context // ends when the broker stops
	log       msglog.Log
	engine    *delivery.Engine
	topics    *pubsub.Topics
	system    *system
	retention msglog.Retention
	noArchive bool          // no archiver is to come
	interval  time.Duration // from figures on $SYS/broker to the next
	version   string
	logger    *slog.Logger
}

// trim forgets messages that are old enough, and archived.
func (m *maintenance) trim() {
	if m.retention == (msglog.Retention{}) {
		return
	}
	archived := uint64(math.MaxUint64)
	if !m.noArchive {
		// As long as no archiver has ever come, nothing may be forgotten.
		archived, _ = m.engine.Archived()
	}
	upto, err := m.log.Expired(m.ctx, m.retention)
	if upto = min(upto, archived); err == nil && upto > 0 {
		err = m.log.Compact(m.ctx, upto)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		m.logger.Error("cannot trim the message log", "error", err)
	}
}
