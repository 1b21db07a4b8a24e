package packet

import (
	"encoding/binary"
	"testing"
)

// The length of a variable byte integer is right on both sides of where it needs another
// byte (MQTT 5, table 1-1).
func TestVarintLen(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]int{0: 1, 127: 1, 128: 2, 16_383: 2, 16_384: 3, 2_097_151: 3, 2_097_152: 4, 268_435_455: 4} {
		if got := varintLen(n); got != want || got != len(binary.AppendUvarint(nil, uint64(n))) {
			t.Errorf("varintLen(%d) is %d, want %d", n, got, want)
		}
	}
}
