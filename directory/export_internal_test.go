package directory

// Away reports whether PostgreSQL did not answer the last time.
func (d *Directory) Away() bool { return d.away.Load() }
