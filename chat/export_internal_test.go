package chat

import "strconv"

// AppendArchived appends the message as ParseEnvelope's Object has it: the envelope less
// prev, which depends on the topic of delivery.
func (m *Message) AppendArchived(dst []byte) []byte {
	dst = append(dst, `{"seq":`...)
	dst = strconv.AppendUint(dst, m.Seq, 10)
	return m.appendRest(dst)
}
