package load

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"mynah/internal/mqttwire"
)

// rawBacklog is the number of bytes that may wait for one receiver. Above it,
// the raw fan-out does not read from the sender.
const rawBacklog = 1 << 20

// rawFan is a fan-out over TCP. Of MQTT it knows only how to answer CONNECT
// and SUBSCRIBE. It copies the bytes of the sender unchanged to all
// subscribers, with one write for each read.
type rawFan struct {
	epfd, listener int
	peers          map[int32]*rawPeer
	receivers      []*rawPeer
	sender         *rawPeer
	waiting        int // receivers with a backlog
	paused         bool
	buf            [readSize]byte
}

type rawPeer struct {
	fd        int32
	out       []byte
	connected bool
}

// ServeRawFan runs a raw fan-out on a port of 127.0.0.1 until it fails or the
// process ends. It has one thread, so that the load generator has the other of
// two cores.
func ServeRawFan(port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fmt.Errorf("listen on port %d: %w", port, err)
	}
	if err := unix.Listen(fd, 1024); err != nil {
		return fmt.Errorf("listen on port %d: %w", port, err)
	}
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	s := &rawFan{epfd: epfd, listener: fd, peers: map[int32]*rawPeer{}}
	if err := s.ctl(unix.EPOLL_CTL_ADD, int32(fd), unix.EPOLLIN); err != nil { //nolint:gosec // descriptors are small
		return err
	}
	events := make([]unix.EpollEvent, 256)
	for {
		n, err := unix.EpollWait(epfd, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll: %w", err)
		}
		for i := range max(n, 0) {
			if err := s.serve(&events[i]); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
}

func (s *rawFan) serve(ev *unix.EpollEvent) error {
	if int(ev.Fd) == s.listener {
		fd, _, err := unix.Accept4(s.listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		s.peers[int32(fd)] = &rawPeer{fd: int32(fd)} //nolint:gosec // descriptors are small
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return err
		}
		return s.ctl(unix.EPOLL_CTL_ADD, int32(fd), unix.EPOLLIN) //nolint:gosec // as above
	}
	p := s.peers[ev.Fd]
	if p == nil {
		return nil
	}
	if ev.Events&unix.EPOLLOUT != 0 {
		if err := s.flush(p); err != nil {
			return err
		}
	}
	if ev.Events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
		return nil
	}
	n, err := unix.Read(int(p.fd), s.buf[:])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil || n == 0 {
		delete(s.peers, p.fd)
		for i, r := range s.receivers {
			if r == p {
				s.receivers = append(s.receivers[:i], s.receivers[i+1:]...)
				break
			}
		}
		return unix.Close(int(p.fd))
	}
	return s.received(p, s.buf[:n])
}

func (s *rawFan) received(p *rawPeer, b []byte) error {
	switch {
	case p == s.sender:
		return s.sendToAll(b)
	case !p.connected:
		p.connected = true
		_, err := unix.Write(int(p.fd), []byte{mqttwire.CONNACK << 4, 2, 0, 0})
		return err
	case b[0]>>4 == mqttwire.SUBSCRIBE:
		s.receivers = append(s.receivers, p)
		_, err := unix.Write(int(p.fd), []byte{mqttwire.SUBACK << 4, 3, 0, 1, 0})
		return err
	case b[0]>>4 == mqttwire.PUBLISH:
		s.sender = p
		return s.sendToAll(b)
	}
	return nil
}

func (s *rawFan) sendToAll(b []byte) error {
	for _, r := range s.receivers {
		rest := b
		if len(r.out) == 0 {
			n, err := unix.Write(int(r.fd), b)
			if err != nil && !errors.Is(err, unix.EAGAIN) {
				continue // the read of this connection reports its end
			}
			if rest = b[max(n, 0):]; len(rest) == 0 {
				continue
			}
			s.waiting++
			if err := s.ctl(unix.EPOLL_CTL_MOD, r.fd, unix.EPOLLIN|unix.EPOLLOUT); err != nil {
				return err
			}
		}
		r.out = append(r.out, rest...)
		if len(r.out) > rawBacklog && !s.paused {
			s.paused = true
			if err := s.ctl(unix.EPOLL_CTL_MOD, s.sender.fd, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *rawFan) flush(p *rawPeer) error {
	n, err := unix.Write(int(p.fd), p.out)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		n = len(p.out)
	}
	p.out = p.out[:copy(p.out, p.out[max(n, 0):])]
	if len(p.out) > 0 {
		return nil
	}
	s.waiting--
	if err := s.ctl(unix.EPOLL_CTL_MOD, p.fd, unix.EPOLLIN); err != nil {
		return err
	}
	if s.paused && s.waiting == 0 {
		s.paused = false
		return s.ctl(unix.EPOLL_CTL_MOD, s.sender.fd, unix.EPOLLIN)
	}
	return nil
}

func (s *rawFan) ctl(op int, fd int32, events uint32) error {
	if err := unix.EpollCtl(s.epfd, op, int(fd), &unix.EpollEvent{Events: events, Fd: fd}); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}
