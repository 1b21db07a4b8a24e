package presence_test

import (
	"testing"

	"mynah/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }
