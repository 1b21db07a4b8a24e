package authhook

import "context"

// OpenDirectory is the Directory without a database: anyone may write to anyone
// and see whether they are online, groups come from tokens alone, nothing
// changes.
type OpenDirectory struct{}

var _ Directory = OpenDirectory{}

// Groups returns none.
func (OpenDirectory) Groups(context.Context, string) ([]string, error) { return nil, nil }

// MayWrite allows everything.
func (OpenDirectory) MayWrite(context.Context, string, string) error { return nil }

// MaySpeak allows members, which are those whose token says so.
func (OpenDirectory) MaySpeak(_ context.Context, _, _ string, member bool) error {
	if !member {
		return refusedMember
	}
	return nil
}

// MaySee allows everything.
func (OpenDirectory) MaySee(context.Context, string, string) error { return nil }

// MayConnect allows everybody.
func (OpenDirectory) MayConnect(context.Context, *Identity) error { return nil }

// JoinBySubscribing never joins: there are no open rooms.
func (OpenDirectory) JoinBySubscribing(context.Context, string, string) (bool, error) {
	return false, nil
}

// Watch has nothing to tell.
func (OpenDirectory) Watch(func(Change)) (stop func()) { return func() {} }
