package authhook

// For the black-box tests.
var (
	StayEncrypted = stayEncrypted
	ValidFilter   = validFilter
	Covers        = covers
)

// Size returns how many subjects and addresses a limiter remembers.
func (l *Limiter) Size() (subjects, addresses int) {
	if l.publish != nil {
		subjects = l.publish.size()
	}
	if l.failures != nil {
		addresses = l.failures.size()
	}
	return subjects, addresses
}
