// Command mynah is an instant-messaging backend that speaks MQTT. See README.md
// for what it does and PROTOCOL.md for its contract with clients; `mynah --help`
// lists the commands.
package main

import (
	"context"
	"os"
)

// version is set by the linker, see the Makefile.
var version = "unknown"

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}
