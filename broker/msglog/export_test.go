package msglog

// StopRemoving keeps what was forgotten on the disk until resume is called, which must be
// before Close.
func (l *Pebble) StopRemoving() (resume func()) {
	l.remover.removing.Lock()
	return l.remover.removing.Unlock
}
