package msglog

// topicState is what the applier knows about a topic: its newest message, and which
// messages of the block under construction are on it.
type topicState struct {
	name string
	tail uint64

	index   []uint8 // positions in the block under construction
	blockID uint64  // which block that is
}

// topicCache is a bounded cache of topic tails. It belongs to the applier. When
// recent is full it becomes older, and the topics that were in older are dropped. A topic
// is kept as long as it is used again before half a cache of others is. Nothing is dropped
// within an entry, whose messages are not in the log yet.
type topicCache struct {
	recent, older map[string]*topicState
	half          int
}

func newTopicCache(limit int) *topicCache {
	c := &topicCache{half: max(limit/2, 1)}
	c.reset()
	return c
}

// reset drops everything; topics are then looked up in the log again.
func (c *topicCache) reset() {
	c.recent, c.older = make(map[string]*topicState), nil
}

// rotate drops topics if there are too many. It is called between entries.
func (c *topicCache) rotate() {
	if len(c.recent) >= c.half {
		c.older, c.recent = c.recent, make(map[string]*topicState, c.half/8)
	}
}

// get returns what is known about the topic, nil if nothing is. The pointer is
// good for the entry in which it was asked for.
func (c *topicCache) get(topic []byte) *topicState {
	if s, ok := c.recent[string(topic)]; ok {
		return s
	}
	s, ok := c.older[string(topic)]
	if ok {
		c.put(s)
	}
	return s
}

func (c *topicCache) put(s *topicState) { c.recent[s.name] = s }
