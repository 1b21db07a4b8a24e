package listener

import (
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// reserved is how many file descriptors connections leave to the rest of the
	// process at least, and reservedPart which part of all of them.
	reserved     = 256
	reservedPart = 10
	// refusedLogEvery is how often, at most, connections are logged that found no
	// descriptor left.
	refusedLogEvery = time.Minute
)

// ForConnections returns how many of a process's file descriptors its connections
// may take, of limit that it may have: what they leave, a tenth and 256 at least, is
// for the message log, the database and connections that the process opens itself.
// If 256 are more than half of the limit, they leave half.
func ForConnections(limit int) int {
	return limit - min(max(reserved, limit/reservedPart), limit/2)
}

// Descriptors bounds how many connections the doors of a process have open
// together, those of HTTP included, so that there is always a file descriptor left
// for the message log, which cannot go on without: a stranger can open connections
// without a token. It is a [prometheus.Collector] and safe for concurrent use; a nil
// *Descriptors bounds nothing.
type Descriptors struct {
	most int64
	log  *slog.Logger

	open    atomic.Int64
	refused *prometheus.CounterVec

	mu     sync.Mutex // guards what follows
	untold int        // refused since they were last logged
	told   time.Time
}

// NewDescriptors returns a Descriptors that lets the doors have most connections
// open together. Refusals are logged at warn, at most once a minute; a nil log
// means silence.
func NewDescriptors(most int, log *slog.Logger) *Descriptors {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Descriptors{
		most: int64(most), log: log,
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mynah_descriptors_refused_total",
			Help: "Connections that were closed at once because connections had all the file descriptors that they may take.",
		}, []string{"door"}),
	}
}

// Listener returns ln with its connections counted. One that is too many is closed
// at once, and Accept waits for the next. door names ln in the log and in the
// metrics. extra is how many connections it may have open beyond the bound that all
// share, for a door that is to open when the others are full.
//
// An Accept that fails says that it is temporary, unless ln is closed: what there
// is (too many open files in the whole system, a kernel out of memory) passes, and
// net/http, which gives up on other errors, is to try again.
func (d *Descriptors) Listener(ln net.Listener, door string, extra int) net.Listener {
	if d == nil {
		return ln
	}
	return &countedListener{Listener: ln, d: d, door: door, most: d.most + int64(extra), refused: d.refused.WithLabelValues(door)}
}

// Describe implements [prometheus.Collector].
func (d *Descriptors) Describe(ch chan<- *prometheus.Desc) {
	d.refused.Describe(ch)
	ch <- descOpen
	ch <- descMost
}

// Collect implements [prometheus.Collector].
func (d *Descriptors) Collect(ch chan<- prometheus.Metric) {
	d.refused.Collect(ch)
	ch <- prometheus.MustNewConstMetric(descOpen, prometheus.GaugeValue, float64(d.open.Load()))
	ch <- prometheus.MustNewConstMetric(descMost, prometheus.GaugeValue, float64(d.most))
}

var (
	descOpen = prometheus.NewDesc("mynah_descriptors_open", "File descriptors that connections have taken, at all doors together.", nil, nil)
	descMost = prometheus.NewDesc("mynah_descriptors_max", "File descriptors that connections may take, by the process's limit.", nil, nil)
)

// take counts one more connection, unless there are most.
func (d *Descriptors) take(most int64) bool {
	if d.open.Add(1) > most {
		d.open.Add(-1)
		return false
	}
	return true
}

// tell logs that a connection was refused, and how many were since the last line.
func (d *Descriptors) tell(door string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.untold++
	now := time.Now()
	if now.Sub(d.told) < refusedLogEvery {
		return
	}
	d.log.Warn("connections have all the file descriptors that they may take, new ones are closed at once; raise the limit: ulimit -n, or LimitNOFILE= in systemd",
		"door", door, "connections", d.most, "refused", d.untold)
	d.told, d.untold = now, 0
}

// countedListener is what Descriptors.Listener returns.
type countedListener struct {
	net.Listener
	d       *Descriptors
	door    string
	most    int64
	refused prometheus.Counter
}

// Accept implements net.Listener.
func (l *countedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil, err
		case err != nil:
			return nil, passing{err}
		case l.d.take(l.most):
			return count(conn, l.d), nil
		}
		l.refused.Inc()
		l.d.tell(l.door)
		reset(conn)
	}
}

// passing is an error of Accept that passes.
type passing struct{ error }

// Unwrap is for errors.Is.
func (p passing) Unwrap() error { return p.error }

// Timeout implements net.Error.
func (passing) Timeout() bool { return false }

// Temporary implements net.Error. It is deprecated there, but what net/http asks.
func (passing) Temporary() bool { return true }

// count returns conn, which gives its place back when it is closed. Whoever looks
// for more than a net.Conn in a TCP connection finds it.
func count(conn net.Conn, d *Descriptors) net.Conn {
	if tcp, ok := conn.(*net.TCPConn); ok {
		return &countedTCP{TCPConn: tcp, place: place{d: d}}
	}
	return &countedConn{Conn: conn, place: place{d: d}}
}

// place is that of one connection among those that are open.
type place struct {
	d     *Descriptors
	given atomic.Bool
}

// give gives the place back, once.
func (p *place) give() {
	if p.given.CompareAndSwap(false, true) {
		p.d.open.Add(-1)
	}
}

type countedTCP struct {
	*net.TCPConn
	place
}

// Close implements net.Conn.
func (c *countedTCP) Close() error {
	err := c.TCPConn.Close()
	c.give()
	return err
}

type countedConn struct {
	net.Conn
	place
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.give()
	return err
}

// tcpOf returns the TCP connection behind conn, nil if it is another one.
func tcpOf(conn net.Conn) *net.TCPConn {
	switch c := conn.(type) {
	case *net.TCPConn:
		return c
	case *countedTCP:
		return c.TCPConn
	}
	return nil
}

// reset closes a connection that is refused. No TIME_WAIT is left for it.
func reset(conn net.Conn) {
	if tcp := tcpOf(conn); tcp != nil {
		_ = tcp.SetLinger(0) // fails only on a connection that is gone
	}
	_ = conn.Close()
}
