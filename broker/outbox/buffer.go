package outbox

import "sync"

// Buffer is a recycled byte slice.
type Buffer struct{ B []byte }

// bufferSizes are the capacities that are recycled.
var bufferSizes = [...]int{512, 4 << 10, 16 << 10, 64 << 10, 320 << 10}

var bufferPools [len(bufferSizes)]sync.Pool

// Buffer returns an empty buffer with room for n bytes and counts it as held.
func (l *Limits) Buffer(n int) *Buffer {
	for i, size := range bufferSizes {
		if n <= size {
			l.held.Add(int64(size))
			if b, ok := bufferPools[i].Get().(*Buffer); ok {
				return b
			}
			return &Buffer{make([]byte, 0, size)}
		}
	}
	l.held.Add(int64(n))
	return &Buffer{make([]byte, 0, n)}
}

// Release gives a buffer back.
func (l *Limits) Release(b *Buffer) {
	l.held.Add(-int64(cap(b.B)))
	for i, size := range bufferSizes {
		if cap(b.B) == size {
			b.B = b.B[:0]
			bufferPools[i].Put(b)
			return
		}
	}
}

// Grow returns a buffer with the content of b and room for n bytes more; b is given
// back if that is another one.
func (l *Limits) Grow(b *Buffer, n int) *Buffer {
	if len(b.B)+n <= cap(b.B) {
		return b
	}
	bigger := l.Buffer(len(b.B) + n)
	bigger.B = append(bigger.B, b.B...)
	l.Release(b)
	return bigger
}
