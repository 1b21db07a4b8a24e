package broker_test

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"mynah/internal/leak"
)

// parallel is how many tests run at once where the command line does not say: many wait
// for time to pass.
const parallel = "4"

func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", parallel); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	leak.Main(m)
}
