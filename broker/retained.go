package broker

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
)

// retainedPrefix begins the keys of retained messages of plain topics.
const retainedPrefix = "retained/"

// retained is what keeps retained messages in order and on disk. The messages themselves
// are in the tree.
type retained struct {
	store   msglog.Store
	logger  *slog.Logger
	failing rarely // logged
	count   *int64 // how many there are, for $SYS

	// order is held from retaining a message to the end of its fan-out, one of them for
	// each topic.
	order [64]sync.Mutex
	// tree guards what Mochi's tree does not where it searches for retained messages.
	tree sync.RWMutex
}

// inOrder locks a topic and returns what unlocks it.
func (r *retained) inOrder(topic string) (unlock func()) {
	mu := &r.order[xxhash.Sum64String(topic)%uint64(len(r.order))]
	mu.Lock()
	return mu.Unlock
}

// storedRetained is a retained message of a plain topic as it is stored.
type storedRetained struct {
	Topic   string `json:"topic"`
	Payload []byte `json:"payload"`
	QoS     byte   `json:"qos"`
	Created int64  `json:"created"`         // seconds since 1970
	Expiry  int64  `json:"expiry"`          // seconds since 1970, 0 for never
	Props   []byte `json:"props,omitempty"` // MQTT 5 properties as in a PUBLISH
}

// retain replaces the retained message of a topic, or deletes it if the payload is empty
// (MQTT 5, 3.3.1.3). If it is to be kept it survives a restart, too.
func (p *plainTopics) retain(pk packets.Packet, keep bool) {
	p.retained.tree.Lock()
	p.tree.RetainMessage(pk)
	p.retained.tree.Unlock()
	atomic.StoreInt64(p.retained.count, int64(p.tree.Retained.Len()))
	if !keep {
		return
	}
	op := msglog.Op{Key: retainedPrefix + pk.TopicName, Delete: len(pk.Payload) == 0}
	if !op.Delete {
		v, err := json.Marshal(storedRetained{
			pk.TopicName, pk.Payload, pk.FixedHeader.Qos, pk.Created, pk.Expiry, appendForwarded(nil, &pk.Properties),
		})
		if err != nil {
			return // it has nothing that JSON does not
		}
		op.Value = v
	}
	durably := pk.FixedHeader.Qos > 0 // its acknowledgement says so
	if err := p.retained.store.Apply([]msglog.Op{op}, durably); err != nil {
		p.retained.failing.Do(func() {
			p.retained.logger.Warn("cannot store retained messages; after a restart they will be as they were before",
				"topic", pk.TopicName, "error", err)
		})
	}
}

// Retained implements delivery.PlainTopics.
func (p *plainTopics) Retained(topic string) *delivery.PlainMessage {
	pk, ok := p.tree.Retained.Get(topic)
	if !ok || pk.Expiry > 0 && pk.Expiry <= time.Now().Unix() {
		return nil
	}
	return plainMessage(&pk)
}

// retainedFor returns the topics with retained messages that a filter matches.
func (p *plainTopics) retainedFor(s *delivery.Session, filter string) []string {
	p.retained.tree.RLock()
	found := p.tree.Messages(filter)
	if parent, ok := strings.CutSuffix(filter, "/#"); ok { // which the tree forgets
		found = append(found, p.tree.Messages(parent)...)
	}
	p.retained.tree.RUnlock()
	topics := make([]string, 0, len(found))
	for i := range found {
		if topic := found[i].TopicName; matches(filter, topic) && p.may(s, topic) {
			topics = append(topics, topic)
		}
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

// forgetExpired forgets the retained messages whose time was over at now, in seconds since
// 1970. Nobody has been sent them since.
func (p *plainTopics) forgetExpired(now int64) {
	for topic, pk := range p.tree.Retained.GetAll() {
		if pk.Expiry == 0 || pk.Expiry > now {
			continue
		}
		func() {
			defer p.retained.inOrder(topic)()
			if pk, ok := p.tree.Retained.Get(topic); ok && pk.Expiry > 0 && pk.Expiry <= now {
				pk.Payload = nil
				p.retain(pk, true)
			}
		}()
	}
}

// restore brings back the retained messages that were stored.
func (p *plainTopics) restore() error {
	now := time.Now().Unix()
	return p.retained.store.Scan(retainedPrefix, func(_ string, value []byte) bool {
		var m storedRetained
		if json.Unmarshal(value, &m) != nil || m.Expiry > 0 && m.Expiry <= now || tooDeep(m.Topic) {
			return true
		}
		var props packets.Properties
		encoded := append(binary.AppendUvarint(nil, uint64(len(m.Props))), m.Props...)
		if _, err := props.Decode(packets.Publish, bytes.NewBuffer(encoded)); err != nil {
			p.retained.logger.Warn("a retained message has lost its properties", "topic", m.Topic, "error", err)
		}
		pk := newPlain(m.Topic, m.Payload, m.QoS, true, props)
		pk.Created, pk.Expiry = m.Created, m.Expiry
		if m.Expiry > 0 {
			pk.Properties.MessageExpiryInterval = uint32(max(m.Expiry-now-1, 1)) //nolint:gosec // it came from 32 bits
		}
		p.retain(pk, false)
		return true
	})
}
