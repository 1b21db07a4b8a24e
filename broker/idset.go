package broker

import "math/bits"

// idSet is a set of packet ids. Ids that are near to each other, as clients give them, are
// kept in few bytes, and all 65,535 in some KiB. Its zero value is empty.
type idSet struct {
	blocks map[uint8]*[4]uint64 // 256 ids each, by their upper byte; none is empty
	n      int
}

// at returns where an id is: in which word of its block, and which bit.
func at(id uint16) (word int, bit uint64) { return int(id & 0xFF >> 6), 1 << (id & 63) }

func (s *idSet) len() int { return s.n }

func (s *idSet) has(id uint16) bool {
	word, bit := at(id)
	block := s.blocks[uint8(id>>8)]
	return block != nil && block[word]&bit != 0
}

func (s *idSet) add(id uint16) {
	word, bit := at(id)
	block := s.blocks[uint8(id>>8)]
	if block == nil {
		if s.blocks == nil {
			s.blocks = map[uint8]*[4]uint64{}
		}
		block = new([4]uint64)
		s.blocks[uint8(id>>8)] = block
	}
	if block[word]&bit == 0 {
		block[word] |= bit
		s.n++
	}
}

func (s *idSet) remove(id uint16) {
	if !s.has(id) {
		return
	}
	word, bit := at(id)
	block := s.blocks[uint8(id>>8)]
	block[word] &^= bit
	if s.n--; *block == [4]uint64{} {
		delete(s.blocks, uint8(id>>8))
	}
	if s.n == 0 {
		s.blocks = nil // a map keeps the room that it once needed
	}
}

// addAll adds the ids of another set.
func (s *idSet) addAll(other *idSet) {
	for upper, block := range other.blocks {
		for word, set := range block {
			for ; set != 0; set &= set - 1 {
				s.add(uint16(upper)<<8 | uint16(word<<6+bits.TrailingZeros64(set))) //nolint:gosec // below 256
			}
		}
	}
}
