package delivery_test

import (
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"mynah/broker/delivery"
	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/session"
	"mynah/internal/waitfor"
)

// The registry against a naive model: whoever subscribes to a topic, by name or by
// group/+, gets what is published there after that, and nobody else, whatever joins,
// leaves, subscribes, unsubscribes, disconnects, comes back, takes over, starts clean and
// expires.
func TestRegistryAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l, err := msglog.Open(modelDir(t), msglog.Options{NoSync: true})
		check(t, err)
		m := &model{log: l, clock: &clock{}}
		m.clock.set(time.Now().UnixMilli())
		m.engine, err = delivery.New(delivery.Config{Log: l, State: l.State(), Logger: slog.New(slog.DiscardHandler), Now: m.clock.now})
		check(t, err)
		m.engine.Start()
		defer func() { m.engine.Stop(); _ = l.Close() }()
		for i := range rapid.IntRange(1, 4).Draw(t, "users") {
			m.users = append(m.users, &modelUser{name: fmt.Sprintf("u%d", i), groups: map[string]bool{}, filters: map[string]bool{}})
		}
		defer m.close()
		m.run(t)
	})
}

// sessionExpiry is how long the model's sessions outlive their connections.
const sessionExpiry = time.Hour

type model struct {
	log    *msglog.Pebble
	engine *delivery.Engine
	clock  *clock
	users  []*modelUser
}

// modelUser is a subject with one persistent session and what it should have got.
type modelUser struct {
	name    string
	there   bool          // it has a session
	peer    *peer         // nil while offline
	done    chan struct{} // closed when the peer has read all
	groups  map[string]bool
	filters map[string]bool
	want    []uint64
	old     []arrival // what earlier connections got
}

func (m *model) close() {
	for _, u := range m.users {
		u.leave(func() {
			u.peer.session.Detach(u.peer.out, 0)
			_ = u.peer.out.Close()
		})
	}
}

// leave ends the user's connection and takes in what it got.
func (u *modelUser) leave(end func()) {
	if u.peer == nil {
		return
	}
	end()
	<-u.done
	_ = u.peer.conn.Close()
	u.old = append(u.old, u.peer.arrivals()...)
	u.peer = nil
}

// lose says that the session has ended, and with it what the user has missed.
func (u *modelUser) lose() {
	clear(u.filters)
	u.there = false
	u.want = u.got()
}

// got returns the seqs of what the user got. What was under way when a connection ended
// comes again, with DUP.
func (u *modelUser) got() []uint64 {
	all := slices.Clone(u.old)
	if u.peer != nil {
		all = append(all, u.peer.arrivals()...)
	}
	var seqs []uint64
	for _, a := range all {
		if !a.dup || !slices.Contains(seqs, a.seq) {
			seqs = append(seqs, a.seq)
		}
	}
	return seqs
}

func (u *modelUser) groupList() []string { return slices.Sorted(maps.Keys(u.groups)) }

// hears reports whether the user's subscriptions cover a topic.
func (u *modelUser) hears(topic string) bool {
	if id, ok := strings.CutPrefix(topic, "group/"); ok {
		return u.groups[id] && (u.filters["group/+"] || u.filters[topic])
	}
	return u.filters[topic]
}

func (m *model) run(t *rapid.T) {
	for range rapid.IntRange(1, 60).Draw(t, "steps") {
		u := rapid.SampledFrom(m.users).Draw(t, "user")
		group := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "group")
		filter := rapid.SampledFrom([]string{"group/+", "group/a", "group/b", "user/" + u.name}).Draw(t, "filter")
		switch rapid.SampledFrom([]string{
			"connect", "connect", "take over", "start clean", "disconnect", "disconnect", "expire", "subscribe", "subscribe", "subscribe",
			"unsubscribe", "join or leave", "join or leave", "publish", "publish", "publish", "publish",
		}).Draw(t, "step") {
		case "connect":
			if u.peer == nil {
				m.connect(t, u, false)
			}
		case "take over":
			m.connect(t, u, false)
		case "start clean":
			m.settle(t, u)
			m.connect(t, u, true)
		case "disconnect":
			u.leave(func() {
				u.peer.session.Detach(u.peer.out, sessionExpiry)
				_ = u.peer.out.Close()
			})
		case "expire":
			m.clock.ms.Add(2 * sessionExpiry.Milliseconds())
			for _, v := range m.users {
				if v.peer == nil {
					v.lose()
				}
			}
		case "subscribe":
			if u.peer != nil {
				u.filters[filter] = true
				check(t, u.peer.session.Subscribe([]session.Subscription{{Filter: filter, QoS: 1}}, u.groupList()))
			}
		case "unsubscribe":
			if u.peer != nil {
				m.settle(t, u)
				delete(u.filters, filter)
				check(t, u.peer.session.Unsubscribe([]string{filter}))
			}
		case "join or leave":
			if u.groups[group] && u.peer == nil {
				continue // what it has not had by then it does not get: not this model's
			}
			m.settle(t, u)
			if u.groups[group] = !u.groups[group]; !u.groups[group] {
				delete(u.groups, group)
			}
			all := rapid.Bool().Draw(t, "all groups are told")
			for _, s := range m.engine.Sessions(u.name) {
				if all {
					check(t, s.SetGroups(u.groupList()))
				} else {
					check(t, s.ChangeGroup(group, u.groups[group]))
				}
			}
		case "publish":
			m.publish(t, rapid.SampledFrom([]string{"group/a", "group/b", "user/" + u.name}).Draw(t, "topic"))
		}
	}
	for _, u := range m.users {
		if u.peer == nil {
			m.connect(t, u, false)
		}
		m.settle(t, u)
	}
}

func (m *model) publish(t *rapid.T, topic string) {
	recs := []*msglog.Record{message(1, "x", topic)}
	p, err := m.log.Propose(&msglog.Entry{Records: recs})
	check(t, err)
	_, err = p.Wait()
	check(t, err)
	m.engine.Deliver(recs)
	for _, u := range m.users {
		if u.hears(topic) {
			u.want = append(u.want, recs[0].Seq)
		}
	}
}

// connect gives a user a connection, from which it takes over if it has one.
func (m *model) connect(t *rapid.T, u *modelUser, clean bool) {
	client, server := net.Pipe()
	p := &peer{conn: client, out: outbox.NewConn(server, m.engine.Limits())}
	p.resume.L = &p.mu
	s, resumed, err := m.engine.Attach(delivery.Attachment{
		Key: session.Key{Subject: u.name, ClientID: "c"}, Conn: p.out, Clean: clean, Expiry: sessionExpiry, Groups: u.groupList(),
	})
	check(t, err)
	if resumed != (u.there && !clean) {
		t.Fatalf("%s: resumed %v, and there was a session: %v", u.name, resumed, u.there)
	}
	u.leave(func() {}) // the engine has closed that connection
	if clean {
		u.lose()
	}
	u.there = true
	p.session, u.peer, u.done = s, p, make(chan struct{})
	go func() { defer close(u.done); p.read() }()
	s.Start(p.out)
}

// settle waits until a connected user has got what it should, and checks that.
func (m *model) settle(t *rapid.T, u *modelUser) {
	if u.peer == nil {
		return
	}
	_, last := m.log.Bounds()
	waitfor.MustSucceed(t, u.name+" has what it should", func() error {
		if got, at := len(u.got()), u.peer.session.Cursor(); at != last || got < len(u.want) {
			return fmt.Errorf("it has %d messages and is at %d, want %d and %d", got, at, len(u.want), last)
		}
		return nil
	})
	if got := u.got(); !slices.Equal(got, u.want) {
		t.Fatalf("%s got %v, want %v", u.name, got, u.want)
	}
}

func check(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// modelDir returns a folder that is removed when the check is done.
func modelDir(t *rapid.T) string {
	dir, err := os.MkdirTemp("", "mynah-delivery-")
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
