// Package netcut lets a test break network connections silently, as a firewall or a NAT
// does that drops its state: no packet passes in either direction, neither side gets an
// error, and new connections work.
//
// A proxy cannot do that, since the operating system acknowledges for it. So New makes
// a real network: a namespace that is connected to ours by a veth pair. It needs root,
// and the programs ip and nft (Debian: iproute2, nftables).
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

// Namespace is a network namespace. Programs run in it by Command.
type Namespace struct {
	// Outside is our address, to listen on. Inside is the address in the namespace.
	// Mask is the network of both.
	Outside, Inside, Mask string

	tb   testing.TB
	name string
}

// New makes a namespace. It is removed when the test ends. Without root, ip or nft the
// test is skipped, with the reason.
func New(tb testing.TB) *Namespace {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: network namespaces are made")
	}
	for _, program := range []string{"ip", "nft", "ss"} {
		if _, err := exec.LookPath(program); err != nil {
			tb.Skipf("needs the program %s: tools/setup test installs it", program)
		}
	}
	// From 198.18.0.0/15, which is reserved for network tests (RFC 2544).
	four := rand.N(1<<15) * 4 //nolint:gosec // need not be secret
	address := func(n int) string {
		return fmt.Sprintf("198.%d.%d.%d", 18+(four+n)>>16, (four+n)>>8&0xff, (four+n)&0xff)
	}
	n := &Namespace{
		Outside: address(1), Inside: address(2), Mask: address(0) + "/30",
		tb: tb, name: fmt.Sprintf("mynah-%d-%d", os.Getpid(), four/4),
	}
	cable := fmt.Sprintf("my%d", four/4) // at most 15 characters
	n.mustRun("ip", "netns", "add", n.name)
	tb.Cleanup(func() { n.mustRun("ip", "netns", "del", n.name) }) // this also removes the veth pair
	n.mustRun("ip", "link", "add", cable+"o", "type", "veth", "peer", "name", cable+"i", "netns", n.name)
	n.mustRun("ip", "address", "add", n.Outside+"/30", "dev", cable+"o")
	n.mustRun("ip", "link", "set", cable+"o", "up")
	n.run("ip", "address", "add", n.Inside+"/30", "dev", cable+"i")
	n.run("ip", "link", "set", cable+"i", "up")
	n.run("ip", "link", "set", "lo", "up")
	n.run("nft", "add table inet cut; add chain inet cut out { type filter hook output priority 0; }; add chain inet cut in { type filter hook input priority 0; }")
	return n
}

// Command is exec.CommandContext for a program that runs in the namespace.
func (n *Namespace) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.name, program}, args...)...)
}

// DropConnections drops all further packets of the connections that are open from the
// namespace to our port. It returns how many connections there were.
func (n *Namespace) DropConnections(port string) int {
	n.tb.Helper()
	var ports []string
	for line := range strings.Lines(n.run("ss", "-Htn", "state", "established", "dport", "=", ":"+port)) {
		// Recv-Q Send-Q Local:Port Peer:Port
		if fields := strings.Fields(line); len(fields) >= 4 {
			ports = append(ports, fields[2][strings.LastIndex(fields[2], ":")+1:])
		}
	}
	if len(ports) > 0 {
		set := strings.Join(ports, ", ")
		n.run("nft", fmt.Sprintf("add rule inet cut out tcp dport %[1]s tcp sport { %[2]s } drop; add rule inet cut in tcp sport %[1]s tcp dport { %[2]s } drop", port, set))
	}
	return len(ports)
}

func (n *Namespace) run(program string, args ...string) string {
	n.tb.Helper()
	return n.mustRun("ip", append([]string{"netns", "exec", n.name, program}, args...)...)
}

func (n *Namespace) mustRun(program string, args ...string) string {
	n.tb.Helper()
	out, err := exec.CommandContext(context.Background(), program, args...).CombinedOutput()
	if err != nil {
		n.tb.Fatalf("netcut: %s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}
