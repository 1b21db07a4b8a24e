package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"
)

// Bytes is a size: a number of bytes, or of KiB, MiB, GiB or TiB.
type Bytes int64

// byteUnits are the units, the largest first.
var byteUnits = []struct {
	name string
	size Bytes
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// parseBytes reads a size. KB and MB are a thousand to some and 1,024 to others, so they
// are refused.
func parseBytes(text string) (Bytes, error) {
	number, size := text, Bytes(1)
	for _, unit := range byteUnits {
		if before, ok := strings.CutSuffix(text, unit.name); ok {
			number, size = before, unit.size
			break
		}
	}
	value, err := strconv.ParseInt(number, 10, 64)
	if err == nil && (value > math.MaxInt64/int64(size) || value < math.MinInt64/int64(size)) {
		return 0, fmt.Errorf("%q is more than can be counted", text)
	}
	if err != nil {
		return 0, fmt.Errorf("%q is not a size; write a number of bytes, or 64KiB, 100MiB or 2GiB", text)
	}
	return Bytes(value) * size, nil
}

// Decode reads a size from the command line.
func (b *Bytes) Decode(ctx *kong.DecodeContext) error {
	var text string
	if err := ctx.Scan.PopValueInto("size", &text); err != nil {
		return err
	}
	value, err := parseBytes(text)
	if err == nil {
		*b = value
	}
	return err
}

// String returns the size in the largest unit of which it is a whole number.
func (b Bytes) String() string {
	for _, unit := range byteUnits {
		if b != 0 && b%unit.size == 0 {
			return strconv.FormatInt(int64(b/unit.size), 10) + unit.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}
