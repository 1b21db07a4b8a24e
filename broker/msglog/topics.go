package msglog

// topicState is what the applier knows about a topic: its newest message, and which
// messages of the block under construction are on it.
type topicState struct {
	name string
	tail uint64

	index []uint8 // positions in the block under construction
	block uint64  // which block that is
}

// topicCache is a bounded cache of topic tails. It belongs to the applier. When the
// younger half is full it becomes the older half and what was the older half is
// forgotten: a topic is kept as long as it is used once in half a cache's worth of
// others. Nothing is forgotten within an entry, whose messages are not in the log yet.
type topicCache struct {
	young, old map[string]*topicState
	half       int
}

func newTopicCache(limit int) *topicCache {
	c := &topicCache{half: max(limit/2, 1)}
	c.reset()
	return c
}

// reset forgets everything; what is in the log is looked up again.
func (c *topicCache) reset() {
	c.young, c.old = make(map[string]*topicState), nil
}

// shrink forgets topics if there are too many. It is called between entries.
func (c *topicCache) shrink() {
	if len(c.young) >= c.half {
		c.old, c.young = c.young, make(map[string]*topicState, c.half/8)
	}
}

// get returns what is known about the topic, nil if nothing is. The pointer is
// good for the entry in which it was asked for.
func (c *topicCache) get(topic []byte) *topicState {
	if s, ok := c.young[string(topic)]; ok {
		return s
	}
	s, ok := c.old[string(topic)]
	if ok {
		c.put(s)
	}
	return s
}

func (c *topicCache) put(s *topicState) { c.young[s.name] = s }
