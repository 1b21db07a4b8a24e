// Package netcut lets a test lose network connections in silence, as a firewall or a NAT
// loses them that has forgotten about them: nothing comes through any more, in neither
// direction, nobody is told, and new connections work.
//
// A proxy cannot do that: the system acknowledges for it. So it is a real network, in a
// namespace of its own that is joined to ours by a cable (veth). It needs root, and the
// programs ip and nft (Debian: iproute2, nftables).
package netcut

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Net is a network namespace. Programs run in it by Command.
type Net struct {
	// Outside is our address on the cable, to listen on; Inside is the namespace's;
	// Mask is the network of both.
	Outside, Inside, Mask string

	tb   testing.TB
	name string
}

// New makes a namespace, which is removed when the test ends. Where that is not possible
// the test is skipped, with the reason.
func New(tb testing.TB) *Net {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: network namespaces are made")
	}
	for _, program := range []string{"ip", "nft", "ss"} {
		if _, err := exec.LookPath(program); err != nil {
			tb.Skipf("needs the program %s: tools/setup test installs it", program)
		}
	}
	// Out of 198.18.0.0/15, which is for tests of networks (RFC 2544).
	four := rand.N(1<<15) * 4 //nolint:gosec // need not be secret
	address := func(n int) string {
		return fmt.Sprintf("198.%d.%d.%d", 18+(four+n)>>16, (four+n)>>8&0xff, (four+n)&0xff)
	}
	n := &Net{
		Outside: address(1), Inside: address(2), Mask: address(0) + "/30",
		tb: tb, name: fmt.Sprintf("mynah-%d-%d", os.Getpid(), four/4),
	}
	cable := fmt.Sprintf("my%d", four/4) // at most 15 characters
	n.must("ip", "netns", "add", n.name)
	tb.Cleanup(func() { n.must("ip", "netns", "del", n.name) }) // the cable goes with it
	n.must("ip", "link", "add", cable+"o", "type", "veth", "peer", "name", cable+"i", "netns", n.name)
	n.must("ip", "address", "add", n.Outside+"/30", "dev", cable+"o")
	n.must("ip", "link", "set", cable+"o", "up")
	n.inside("ip", "address", "add", n.Inside+"/30", "dev", cable+"i")
	n.inside("ip", "link", "set", cable+"i", "up")
	n.inside("ip", "link", "set", "lo", "up")
	n.inside("nft", "add table inet cut; add chain inet cut out { type filter hook output priority 0; }; add chain inet cut in { type filter hook input priority 0; }")
	return n
}

// Command is exec.CommandContext for a program that runs in the namespace.
func (n *Net) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.name, program}, args...)...)
}

// Cut loses the connections that are open from the namespace to our port. It returns how
// many there were.
func (n *Net) Cut(port string) int {
	n.tb.Helper()
	var ports []string
	for line := range strings.Lines(n.inside("ss", "-Htn", "state", "established", "dport", "=", ":"+port)) {
		// Recv-Q Send-Q Local:Port Peer:Port
		if fields := strings.Fields(line); len(fields) >= 4 {
			ports = append(ports, fields[2][strings.LastIndex(fields[2], ":")+1:])
		}
	}
	if len(ports) > 0 {
		set := strings.Join(ports, ", ")
		n.inside("nft", fmt.Sprintf("add rule inet cut out tcp dport %[1]s tcp sport { %[2]s } drop; add rule inet cut in tcp sport %[1]s tcp dport { %[2]s } drop", port, set))
	}
	return len(ports)
}

func (n *Net) inside(program string, args ...string) string {
	n.tb.Helper()
	return n.must("ip", append([]string{"netns", "exec", n.name, program}, args...)...)
}

func (n *Net) must(program string, args ...string) string {
	n.tb.Helper()
	out, err := exec.CommandContext(context.Background(), program, args...).CombinedOutput()
	if err != nil {
		n.tb.Fatalf("netcut: %s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}
