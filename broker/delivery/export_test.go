package delivery

// Live reports whether the session gets frames as they are committed.
func (s *Session) Live() bool {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return s.mode == live
}

// Idle reports whether the session has been given all that it can be given as it is:
// it is live, or its pump has stopped.
func (s *Session) Idle() bool {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return s.mode == live || s.mode == behind && !s.pumping
}

// Started reports whether the session has a connection that it may send messages to.
func (s *Session) Started() bool {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	return s.mode != offline
}
