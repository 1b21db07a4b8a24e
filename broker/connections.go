package broker

import (
	"sync"

	"mynah/broker/outbox"
	"mynah/broker/session"
)

// connections is who is connected. The zero value with retire set is nobody.
type connections struct {
	// retire has nothing more taken from a connection that has lost its session.
	retire func(*conn)

	byConn    sync.Map // *outbox.Conn → *conn
	bySession sync.Map // session.Key → *conn, which takes the session's publishes
}

// add takes note of a connection that has its session.
func (cs *connections) add(c *conn) { cs.byConn.Store(c.Conn, c) }

// remove forgets a connection that is over.
func (cs *connections) remove(c *conn) {
	cs.byConn.Delete(c.Conn)
	cs.bySession.CompareAndDelete(c.session.Key, c)
}

// of returns the connection whose outbox that is, nil if it is over.
func (cs *connections) of(out *outbox.Conn) *conn {
	v, _ := cs.byConn.Load(out)
	c, _ := v.(*conn)
	return c
}

// ofSession returns the connection that a session has, nil if it has none.
func (cs *connections) ofSession(s *session.Session) *conn {
	if c := cs.holder(s.Key); c != nil && &c.session.Session == s {
		return c
	}
	return nil
}

func (cs *connections) holder(k session.Key) *conn {
	v, _ := cs.bySession.Load(k)
	c, _ := v.(*conn)
	return c
}

// each calls f for each connection until it returns false.
func (cs *connections) each(f func(*conn) bool) {
	cs.byConn.Range(func(_, v any) bool { return f(v.(*conn)) }) //nolint:forcetypeassert // it holds nothing else
}

// takeOver gives a connection its session: nothing more is taken from the one that had it before. If another has
// it by now, that is the one to go on with: connections that race for a session can come
// here in another order than they came to it.
func (cs *connections) takeOver(c *conn) {
	for {
		held, ok := cs.bySession.LoadOrStore(c.session.Key, c)
		if !ok {
			if c.session.Superseded(c.Conn) { // and that one has come and gone
				cs.retire(c)
			}
			return
		}
		other := held.(*conn) //nolint:forcetypeassert // bySession holds nothing else
		if other.AttachedAfter(c.Conn) {
			cs.retire(c)
			return
		}
		if cs.bySession.CompareAndSwap(c.session.Key, held, c) {
			cs.retire(other)
			return
		}
	}
}
