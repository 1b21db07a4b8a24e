// Package directory answers the broker's questions about rights (who is in this
// group, may A write to B) from memory, and keeps what it remembers right: it is
// the authhook.Directory on PostgreSQL.
//
// What it guarantees:
//
//   - Within moments of its commit a change is known, made through the API or with
//     plain SQL: the feed of changes (schema/migrations/00010_accounts.sql) is read
//     when PostgreSQL notifies, every two seconds besides, and after every loss of
//     the connection from where reading had stopped. No change is missed; where
//     that cannot be known, everything is loaded again and watchers get ChangeAll.
//   - Who asks (changes.Barrier) gets an answer when what they have committed has reached
//     watchers.
//   - Changes reach watchers in the order of the feed, after the cache has been
//     put right: who asks because of a change gets the new answer.
//   - What was loaded while a change arrived is not kept.
//   - What is known goes on without PostgreSQL, at the speed of memory, also after
//     a restart: it is kept in a file. What is not known is refused with
//     chat.CodeUnavailable, after at most a second.
//   - Memory is bounded; what was not used for longest goes first.
//
// # What the rules are
//
// Tokens are truth. A subject of whom the database knows nothing may connect, may
// write to others and be written to, and is a member of the groups that its token
// names; nothing is known against it. When it connects it gets an account, so that
// nobody can register its id and be it. What is known against somebody (disabled,
// blocked, banned, muted) counts whatever a token says, and so does a revoked token.
//
// Who may write to a person: everybody but whom they have blocked, or only their
// contacts, by their own setting, else by Config.ContactsOnly for those who can
// sign in here. Both refusals are in the same words.
//
// Who may see whether a person is online: by their setting everybody, nobody, or
// acquaintances, who are their contacts and the members of a common group that is
// not open to everybody. Without a setting it is acquaintances for those who can
// sign in here, everybody for those who are known by tokens only. Whom they have
// blocked never.
//
// Somebody who is not a member of an open group becomes one by subscribing to it.
package directory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/authhook"
	"mynah/chat"
	"mynah/groups"
	"mynah/internal/pgdial"
	"mynah/schema/pgtx"
)

// applicationName is what PostgreSQL shows of the directory's sessions.
const applicationName = "mynah directory"

// Config is what a Directory needs. A zero field means its default.
type Config struct {
	// DatabaseURL is the address of PostgreSQL. Required.
	DatabaseURL string
	// CacheFile is where what is known is kept for an outage; "" for nowhere.
	CacheFile string
	// ContactsOnly lets only contacts write to people who have not set it
	// otherwise (--write-policy contacts).
	ContactsOnly bool
	// Groups are the limits for those who join open groups by subscribing.
	Groups groups.Config
	// MaxSubjects bounds how many people are remembered, MaxGroups how many
	// groups; default 200,000 each. One is a few hundred bytes, with many
	// contacts more.
	MaxSubjects, MaxGroups int
	// SaveEvery is how often what is known is written to CacheFile; default 30 s.
	SaveEvery time.Duration
	// PollEvery is how often the feed is read although nothing was notified;
	// default 2 s.
	PollEvery time.Duration
	Logger    *slog.Logger // default: nobody
}

// Directory is an authhook.Directory. Make it with New. It is safe for concurrent
// use.
type Directory struct {
	cfg      Config
	log      *slog.Logger
	pool     *pgxpool.Pool
	joining  *groups.Joining
	subjects *cache[subject]
	groups   *cache[group]
	away     atomic.Bool // PostgreSQL does not answer, as far as the follower knows
	synced   atomic.Bool // the feed has been read at least once

	database        string // identity of the database that the cache is of; the follower's
	mu              sync.Mutex
	watchers        map[int]func(authhook.Change)   // guarded by mu
	nextID          int                             // guarded by mu
	seen            map[string]struct{}             // who connected, to be noted; guarded by mu
	pendingAccounts *pendingAccounts                // who connected and has no account
	keys            atomic.Pointer[map[string]bool] // the API's own that verify; nil if they were never read

	startMu sync.Mutex // guards what follows
	cancel  context.CancelFunc
	tasks   sync.WaitGroup
}

var _ authhook.Directory = (*Directory)(nil)

// New returns a Directory. It asks nobody anything yet: Start does.
func New(cfg Config) (*Directory, error) {
	config, err := pgdial.ParsePool(cfg.DatabaseURL, applicationName)
	if err != nil {
		return nil, errors.New("directory: the database's address cannot be understood") // the parser's error may quote the password
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct{ field, value *time.Duration }{
		{&cfg.SaveEvery, new(30 * time.Second)}, {&cfg.PollEvery, new(2 * time.Second)},
	} {
		if *d.field <= 0 {
			*d.field = *d.value
		}
	}
	for _, field := range []*int{&cfg.MaxSubjects, &cfg.MaxGroups} {
		if *field <= 0 {
			*field = 200_000
		}
	}
	config.MaxConns = 6
	config.ConnConfig.ConnectTimeout = loadTimeout
	// It outlives every context; Stop closes it. It connects when it is used.
	pool, err := pgdial.NewPool(context.Background(), config)
	if err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	d := &Directory{
		cfg: cfg, log: cfg.Logger, pool: pool, joining: groups.New(pgtx.New(pool), cfg.Groups).Joining,
		watchers: map[int]func(authhook.Change){}, seen: map[string]struct{}{}, pendingAccounts: newPendingAccounts(),
	}
	d.subjects = newCache(cfg.MaxSubjects, &d.away, d.loadSubjects)
	d.groups = newCache(cfg.MaxGroups, &d.away, d.loadGroups)
	return d, nil
}

// startTimeout is how long Start waits for PostgreSQL.
const startTimeout = 3 * time.Second

// Start reads the cache file and begins to follow the feed. It waits a moment for
// PostgreSQL and goes on without it: known rights hold. To start what is started
// does nothing.
func (d *Directory) Start(ctx context.Context) error {
	d.startMu.Lock()
	if d.cancel != nil {
		d.startMu.Unlock()
		return nil
	}
	reader := d.restore()
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	d.cancel = cancel
	for range loadWorkers {
		d.tasks.Go(func() { d.subjects.runLoads(background) })
		d.tasks.Go(func() { d.groups.runLoads(background) })
	}
	d.tasks.Go(func() { d.makePendingAccounts(background) })
	first := make(chan struct{})
	d.tasks.Go(func() { d.follow(background, reader, first) })
	d.startMu.Unlock() // a Stop need not wait for PostgreSQL
	select {
	case <-first:
	case <-time.After(startTimeout):
		d.log.WarnContext(ctx, "the directory starts without PostgreSQL: known rights go on, unknown ones are refused")
	case <-ctx.Done():
	}
	return nil
}

// Stop ends following and writes what is known to the cache file. What is known is
// still answered. To stop what is stopped does nothing.
func (d *Directory) Stop(ctx context.Context) error {
	d.startMu.Lock()
	if d.cancel != nil {
		d.cancel()
	}
	d.startMu.Unlock() // not held while Stop waits: another Stop has a context of its own
	done := make(chan struct{})
	go func() {
		d.tasks.Wait()
		pgtx.Close(ctx, d.pool)
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("directory: stop: gave up on ending its work with PostgreSQL and on writing what is known to %q: %w", d.cfg.CacheFile, ctx.Err())
	}
}

// Refusals are values, made once.
var (
	refusedWrite    = chat.Refuse(chat.CodeNotAllowed, "you may not write to them; become contacts first")
	refusedMember   = chat.Refuse(chat.CodeNotMember, "you are not in this group; join it or ask to be invited")
	refusedMuted    = chat.Refuse(chat.CodeMuted, "you may not speak in this group now; wait until the mute ends, or ask its owner or an admin")
	refusedAllMuted = chat.Refuse(chat.CodeMuted, "only the owner and admins may speak in this group now; ask one of them to unmute it")
	refusedSee      = chat.Refuse(chat.CodeNotAllowed, "you may not see whether they are online; become contacts first")
	refusedConnect  = chat.Refuse(chat.CodeNotAllowed, "the token is no longer accepted; sign in again")
	refusedUnknown  = chat.Refuse(chat.CodeUnavailable, "cannot check that right now; try again")
)

// Groups returns the ids of the groups that the subject is a member of.
func (d *Directory) Groups(ctx context.Context, id string) ([]string, error) {
	s, err := d.subjects.get(ctx, id)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(s.Groups))
	for i := range s.Groups {
		ids[i] = s.Groups[i].Group
	}
	return ids, nil
}

// MayWrite returns nil if from may write to the person to.
func (d *Directory) MayWrite(ctx context.Context, from, to string) error {
	s, err := d.subjects.get(ctx, to)
	if err != nil {
		return err
	}
	only := s.Write == "contacts" || s.Write == "" && s.Registered && d.cfg.ContactsOnly
	if s.Deleted || contains(s.Blocks, from) || only && !contains(s.Contacts, from) {
		return refusedWrite
	}
	return nil
}

// MaySpeak returns nil if the subject is in the group and may speak.
func (d *Directory) MaySpeak(ctx context.Context, id, groupID string, member bool) error {
	s, err := d.subjects.get(ctx, id)
	if err != nil {
		return err
	}
	m := s.membershipIn(groupID)
	if contains(s.Banned, groupID) || m == nil && !member {
		return refusedMember
	}
	g, err := d.groups.get(ctx, groupID)
	if err != nil {
		return err
	}
	role := groups.Member
	switch {
	case g.Dissolved:
		return refusedMember
	case m != nil && m.Staff:
		role = groups.Admin
	}
	action := groups.Speak
	if g.Muted {
		action = groups.SpeakWhenMuted
	}
	if groups.May(role, action, g.Join) != nil {
		return refusedAllMuted
	}
	if m != nil && time.Now().Before(m.MutedUntil) {
		return refusedMuted
	}
	return nil
}

// MaySee returns nil if the viewer may see whether the person is online.
func (d *Directory) MaySee(ctx context.Context, viewer, id string) error {
	s, err := d.subjects.get(ctx, id)
	if err != nil {
		return err
	}
	switch {
	case s.Deleted, contains(s.Blocks, viewer), s.Presence == "nobody":
		return refusedSee
	case s.Presence == "anyone", s.Presence == "" && !s.Registered, contains(s.Contacts, viewer):
		return nil
	}
	v, err := d.subjects.get(ctx, viewer)
	if err != nil {
		return err
	}
	for i := range s.Groups {
		if v.membershipIn(s.Groups[i].Group) == nil {
			continue
		}
		g, err := d.groups.get(ctx, s.Groups[i].Group)
		if err != nil {
			return err
		}
		if g.Join != groups.JoinOpen {
			return nil
		}
	}
	return refusedSee
}

// MayConnect returns nil unless the account is disabled or deleted, the token was
// revoked, or the key that signed it is distrusted. The parts of the server itself (roles archiver, service and admin,
// whose tokens come from the operator) are let in while nothing can be known:
// without the archiver the log could not be trimmed. Who is let in for the first time
// has an account from then on, which nobody else can register.
func (d *Directory) MayConnect(ctx context.Context, id *authhook.Identity) error {
	s, err := d.subjects.get(ctx, id.Subject)
	if err != nil {
		switch id.Role {
		case authhook.RoleArchiver, authhook.RoleService, authhook.RoleAdmin:
			d.ensureAccount(ctx, id)
			return nil
		}
		return err
	}
	if !d.trustsKey(ctx, id.Key) {
		return refusedConnect
	}
	if s.Refused || id.Session != "" && contains(s.Revoked, id.Session) || id.TokenID != "" && contains(s.Revoked, id.TokenID) {
		return refusedConnect
	}
	if !s.Known {
		d.ensureAccount(ctx, id)
		return nil
	}
	d.mu.Lock()
	d.seen[id.Subject] = struct{}{}
	d.mu.Unlock()
	return nil
}

// JoinBySubscribing makes the subject a member of an open group.
func (d *Directory) JoinBySubscribing(ctx context.Context, id, groupID string) (bool, error) {
	g, err := d.groups.get(ctx, groupID)
	if err != nil {
		return false, err
	}
	if !g.Known || g.Dissolved || g.Join != groups.JoinOpen {
		return false, nil
	}
	if d.away.Load() {
		return false, refusedUnknown
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	member, err := d.joining.JoinOpen(ctx, id, groupID)
	if err != nil {
		if refusal, ok := errors.AsType[*chat.Error](err); ok {
			return false, refusal
		}
		d.log.WarnContext(ctx, "cannot join a group by subscribing", "subject", id, "group", groupID, "error", err)
		return false, refusedUnknown
	}
	// The feed would say so in a moment. The next publish may be sooner.
	d.subjects.forget(id)
	return member, nil
}

// joinTimeout bounds joining by subscribing. A popular room admits one at a time.
const joinTimeout = 4 * time.Second

// Watch calls fn for every change after the call, one at a time, until stop.
func (d *Directory) Watch(fn func(authhook.Change)) (stop func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := d.nextID
	d.nextID++
	d.watchers[id] = fn
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.watchers, id)
	}
}

// notifyWatchers calls all watchers with a change.
func (d *Directory) notifyWatchers(c authhook.Change) {
	d.mu.Lock()
	ids := make([]int, 0, len(d.watchers))
	for id := range d.watchers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	fns := make([]func(authhook.Change), len(ids))
	for i, id := range ids {
		fns[i] = d.watchers[id]
	}
	d.mu.Unlock()
	for _, fn := range fns {
		fn(c)
	}
}
