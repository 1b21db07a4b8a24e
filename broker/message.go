package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/mochi-mqtt/server/v2/packets"

	"mynah/authhook"
	"mynah/broker/msglog"
	"mynah/chat"
)

// maxTravelling bounds the MQTT 5 properties that travel with a message, in bytes as in a
// PUBLISH. They are stored twice, as they are and in the message's ext.mqtt.
const maxTravelling = 8 << 10

// travelling is the properties of a PUBLISH to a chat topic that belong to the message.
type travelling struct {
	props   []byte // for subscribers with MQTT 5, as in a PUBLISH (3.3.2.3); nil for none
	object  []byte // for readers of JSON, as ext.mqtt; nil for none
	request bool   // there is a Response Topic
}

// extMQTT is ext.mqtt (schema/wire, message.schema.json).
type extMQTT struct {
	ContentType     string      `json:"content_type,omitempty"`
	ResponseTopic   string      `json:"response_topic,omitempty"`
	CorrelationData []byte      `json:"correlation_data,omitempty"`
	UserProperties  [][2]string `json:"user_properties,omitempty"`
}

// travel returns what travels of the properties of a PUBLISH. The Payload Format Indicator
// does not: what subscribers get is always UTF-8.
func travel(p *packets.Properties) (t travelling, err error) {
	if p == nil || p.ContentType == "" && p.ResponseTopic == "" && len(p.CorrelationData) == 0 && len(p.User) == 0 {
		return t, nil
	}
	of := packets.Properties{
		ContentType: p.ContentType, ResponseTopic: p.ResponseTopic, CorrelationData: p.CorrelationData, User: p.User,
	}
	if t.props = appendForwarded(nil, &of); len(t.props) > maxTravelling {
		return travelling{}, errTravelling
	}
	ext := extMQTT{ContentType: p.ContentType, ResponseTopic: p.ResponseTopic, CorrelationData: p.CorrelationData}
	for _, u := range p.User {
		ext.UserProperties = append(ext.UserProperties, [2]string{u.Key, u.Val})
	}
	var object bytes.Buffer
	e := json.NewEncoder(&object)
	e.SetEscapeHTML(false)
	if err := e.Encode(ext); err != nil {
		return travelling{}, fmt.Errorf("encode ext.mqtt: %w", err)
	}
	t.object, t.request = bytes.TrimSuffix(object.Bytes(), []byte("\n")), p.ResponseTopic != ""
	return t, nil
}

var errTravelling = chat.Refuse(chat.CodeTooLarge, "content type, response topic, correlation data and user properties have more than "+
	strconv.Itoa(maxTravelling)+" bytes together; put what is large into the payload")

// record makes a PUBLISH to a chat topic a record of the log. It returns the message's mid
// also with an error, if it is known.
func (pub *publisher) record(id *authhook.Identity, topic string, payload []byte, props *packets.Properties) (*msglog.Record, string, error) {
	system := speaksForSystem(id.Role)
	with, err := travel(props)
	if err != nil {
		return nil, "", err
	}
	draft, err := pub.limits.ParseWith(payload, system, with.object)
	if err != nil {
		return nil, draft.Mid, err
	}
	r := &msglog.Record{
		Message: chat.Message{
			From: id.Subject, To: topic, Type: draft.Type, Mid: draft.Mid, Expires: draft.Expires, Tail: draft.Tail,
		},
		Props: with.props, Request: with.request,
	}
	if draft.Mid == "" {
		r.Digest = msglog.RawDigest(topic, draft.Tail)
	} else {
		// A client that tries again may have written the message anew.
		var value [8]byte
		binary.LittleEndian.PutUint64(value[:], draft.Digest)
		r.Digest = msglog.RawDigest(topic, value[:])
	}
	if with.object != nil {
		// Earlier versions stored the message without the properties.
		if bare, err := pub.limits.Parse(payload, system); err == nil {
			r.RawDigest = msglog.RawDigest(topic, bare.Tail)
		}
	}
	if chat.ChangesSomething(draft.Type) {
		err = pub.mayChange(id, topic, draft.Type, draft.Change)
	}
	return r, draft.Mid, err
}

// mayChange returns why somebody may not have a message, published to topic, change another
// one. It looks at the log on the publisher's own goroutine. Who was told that a message is
// stored finds it there.
func (pub *publisher) mayChange(id *authhook.Identity, topic, typ string, change chat.Change) error {
	if typ == chat.TypeRead {
		return nil // a position is not a message: it may be beyond the last
	}
	first, last := pub.log.Bounds()
	owns := typ == chat.TypeEdit || typ == chat.TypeRecall // only who sent it may
	switch {
	case change.Of > last:
		return chat.Refuse(chat.CodeNotAllowed, fmt.Sprintf("there is no message %d; of is the seq of a message that exists", change.Of))
	case change.Of < first && owns:
		return chat.Refuse(chat.CodeNotAllowed, fmt.Sprintf("message %d is too old, in the archive only; send a new message instead", change.Of))
	case change.Of < first:
		return nil // whether it is of this conversation only the archive knows
	}
	ctx, cancel := context.WithTimeout(pub.rights.ctx, publishTimeout)
	defer cancel()
	var of *msglog.Record
	if err := pub.log.Read(ctx, change.Of-1, change.Of, func(r *msglog.Record) bool { of = r; return false }); err != nil {
		return errNotDecided
	}
	conversation := chat.Conversation(id.Subject, topic)
	switch {
	case of == nil && owns: // trimmed meanwhile
		return chat.Refuse(chat.CodeNotAllowed, fmt.Sprintf("message %d is too old, in the archive only; send a new message instead", change.Of))
	case of == nil:
		return nil
	case chat.Conversation(of.From, of.To) != conversation:
		// What another conversation has is not for the sender to know.
		return chat.Refuse(chat.CodeNotAllowed, fmt.Sprintf("message %d is not in %s; publish where that message was published", change.Of, conversation))
	case chat.ChangesSomething(of.Type):
		return chat.Refuse(chat.CodeNotAllowed, fmt.Sprintf("message %d is of type %s, which only changes others; of is the seq of one that people read", change.Of, of.Type))
	case owns && chat.IsNotice(of.Type):
		return chat.Refuse(chat.CodeNotAllowed, fmt.Sprintf("message %d is a notice, which nobody may %s", change.Of, typ))
	case owns && of.From != id.Subject:
		// The one place to ask for the sender's role in the group, when a directory
		// can tell.
		return chat.Refuse(chat.CodeNotAllowed, fmt.Sprintf("message %d is not yours to %s: only who sent it may", change.Of, typ))
	}
	return nil
}

// errSignalChanges refuses signals that are to change messages: what is kept nowhere has no
// place in their order.
var errSignalChanges = chat.Refuse(chat.CodeBadMessage,
	"read, recall, edit, reaction and pin are messages, not signals; publish to the topic without /signal")
