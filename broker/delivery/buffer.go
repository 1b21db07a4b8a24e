package delivery

import "sync"

// buffer is a recycled byte slice.
type buffer struct{ b []byte }

// bufferSizes are the capacities that are recycled.
var bufferSizes = [...]int{512, 4 << 10, 16 << 10, 64 << 10, 320 << 10}

var bufferPools [len(bufferSizes)]sync.Pool

// get returns an empty buffer with room for n bytes and counts it as held.
func (l *OutboxLimits) get(n int) *buffer {
	for i, size := range bufferSizes {
		if n <= size {
			l.held.Add(int64(size))
			if b, ok := bufferPools[i].Get().(*buffer); ok {
				return b
			}
			return &buffer{make([]byte, 0, size)}
		}
	}
	l.held.Add(int64(n))
	return &buffer{make([]byte, 0, n)}
}

// put gives a buffer back.
func (l *OutboxLimits) put(b *buffer) {
	l.held.Add(-int64(cap(b.b)))
	for i, size := range bufferSizes {
		if cap(b.b) == size {
			b.b = b.b[:0]
			bufferPools[i].Put(b)
			return
		}
	}
}

// grow returns a buffer with the content of b and room for n bytes more; b is given
// back if that is another one.
func (l *OutboxLimits) grow(b *buffer, n int) *buffer {
	if len(b.b)+n <= cap(b.b) {
		return b
	}
	bigger := l.get(len(b.b) + n)
	bigger.b = append(bigger.b, b.b...)
	l.put(b)
	return bigger
}
