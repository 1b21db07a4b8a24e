package schema_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/internal/pgtest"
	"mynah/schema"
)

// seeds fill a database to the size that lists must stay fast at. Triggers are off,
// and the indexes of the largest table are made after it is filled.
var seeds = []string{
	`SET session_replication_role = replica`,
	`SET synchronous_commit = off`,
	`SET maintenance_work_mem = '256MB'`,
	`SET max_parallel_maintenance_workers = 0`, // one core is for the others
	`ALTER TABLE members SET UNLOGGED`,
	// Checks of what we make here cost most of the time.
	`ALTER TABLE accounts DROP CONSTRAINT accounts_id_check`,
	`ALTER TABLE groups DROP CONSTRAINT groups_id_check`,
	`ALTER TABLE members DROP CONSTRAINT members_account_check`,
	`ALTER TABLE members DROP CONSTRAINT members_pkey`,
	`DROP INDEX members_account, members_owner, members_staff`,
	`INSERT INTO accounts (id) SELECT P(i) FROM generate_series(0, 999999) i`,
	`INSERT INTO groups (id, join_policy) SELECT G(i), 'approval' FROM generate_series(1, 100000) i`,
	// One group of 100,000; everybody is in four or five of the others.
	`INSERT INTO members (grp, account, role)
	 SELECT G(1), P(i), CASE WHEN i = 0 THEN 'owner' WHEN i < 20 THEN 'admin' ELSE 'member' END FROM generate_series(0, 99999) i`,
	`INSERT INTO members (grp, account)
	 SELECT G(2 + (k / 1000000) * 20000 + k % 19997), P(k % 1000000) FROM generate_series(0, 4899999) k`,
	`ALTER TABLE members ADD CONSTRAINT members_pkey PRIMARY KEY (grp, account)`,
	`CREATE INDEX members_account ON members (account, grp)`,
	`CREATE UNIQUE INDEX members_owner ON members (grp) WHERE role = 'owner'`,
	`CREATE INDEX members_staff ON members (grp, joined_at, account) WHERE role = 'admin'`,
	`INSERT INTO contacts (owner, peer, state, since)
	 SELECT P(i % 10000), P(100000 + i), CASE i % 3 WHEN 0 THEN 'asked' WHEN 1 THEN 'incoming' ELSE 'contact' END, now() - i * interval '1 second'
	 FROM generate_series(0, 99999) i`,
	`INSERT INTO contacts (owner, peer, state) SELECT P(0), P(i), 'contact' FROM generate_series(1, 4000) i ON CONFLICT DO NOTHING`,
	`INSERT INTO blocks (owner, peer) SELECT P(i % 50000), P(100000 + i) FROM generate_series(0, 99999) i`,
	`INSERT INTO bans (grp, account) SELECT G(1 + i % 10000), P(i) FROM generate_series(0, 99999) i`,
	`INSERT INTO join_requests (grp, account) SELECT G(1 + i % 10000), P(i) FROM generate_series(0, 99999) i`,
	`INSERT INTO invitations (grp, account, by, expires_at) SELECT G(1 + i % 10000), P(i), 'p0', now() + '1 day' FROM generate_series(0, 99999) i`,
	`INSERT INTO invitation_links (id, grp, token, by, expires_at)
	 SELECT 'L' || i, G(1 + i % 10000), sha256(i::text::bytea), 'p0', now() + '1 day' FROM generate_series(0, 99999) i`,
	`INSERT INTO identities (provider, subject, account) SELECT 'phone', '+49' || i, P(i) FROM generate_series(0, 99999) i`,
	`INSERT INTO sessions (id, account, method, family, token, expires_at)
	 SELECT 's' || i, P(i % 50000), 'password', sha256(i::text::bytea), sha256(i::text::bytea), now() + '1 day' FROM generate_series(0, 99999) i`,
	`INSERT INTO accounts (id, kind) SELECT 'd' || i, 'device' FROM generate_series(0, 99999) i`,
	`INSERT INTO devices (account, grp, created_by) SELECT 'd' || i, G(1 + i % 1000), 'p0' FROM generate_series(0, 99999) i`,
	`INSERT INTO device_credentials (id, account, kid, expires_at) SELECT 'c' || i, 'd' || i, 'k', now() + '1 day' FROM generate_series(0, 19999) i`,
	`INSERT INTO revocations (session, account, expires_at) SELECT 's' || i, P(i), now() + '1 day' FROM generate_series(0, 99999) i`,
	`INSERT INTO changes (kind, subject) SELECT 'rights', P(i) FROM generate_series(0, 99999) i`,
	`INSERT INTO outbox (topic, type, body) SELECT 'group/g' || i % 1000, 'notice.test', '{}' FROM generate_series(0, 49999) i`,
	`ANALYZE`,
}

// asked is a query and arguments for it, as SQL.
type asked struct {
	name, query, args string
}

// questions are the lists that people page through, and all else that is asked for
// every request, message or connection.
var questions = []asked{
	{"contacts", schema.SelectContacts, `'p0', 'p2', 51`},
	{"contacts, first page", schema.SelectContacts, `'p0', '', 51`},
	{"contact", schema.SelectContact, `'p0', 'p2'`},
	{"contact requests", schema.SelectRequests, `'p7', 'incoming', now(), 'p9', 51`},
	{"requests made", schema.SelectRequests, `'p7', 'asked', '9999-01-01', '', 51`},
	{"blocks", schema.SelectBlocks, `'p7', '', 51`},
	{"relation", schema.SelectRelation, `'p7', 'p8'`},
	{"acquaintances", schema.SelectAcquainted, `'p7', ARRAY['p8', 'p9', 'p100007']`},
	{"my groups", schema.SelectMyGroups, `'p7', '', 51`},
	{"group count", schema.CountGroups, `'p7'`},
	{"owned groups", schema.SelectOwned, `'p7'`},
	{"standing", schema.SelectStanding, `'g1', 'p7'`},
	{"members of 100,000", schema.SelectMembers, `'g1', 'p5', 201`},
	{"members, first page", schema.SelectMembers, `'g77', '', 51`},
	{"staff", schema.SelectStaff, `'g1', '', 51`},
	{"member", schema.SelectMember, `'g1', 'p7'`},
	{"admins", schema.CountAdmins, `'g1'`},
	{"owner", schema.SelectOwner, `'g1'`},
	{"successor", schema.SelectSuccessor, `'g1', 'p0'`},
	{"bans", schema.SelectBans, `'g7', '', 51`},
	{"join requests", schema.SelectJoinRequests, `'g7', '2020-01-01', '', 51`},
	{"invitations", schema.SelectInvitations, `'g7', '', 51`},
	{"my invitations", schema.SelectMyInvitations, `'p7', '', 51`},
	{"links", schema.SelectLinks, `'g7', '', 51`},
	{"link", schema.SelectLinkGroup, `sha256('7')`},
	{"outbox", schema.SelectOutbox, `200`},
	{"dissolved groups", schema.DeleteDissolvedMembers, `2000`},
	{"devices of a dissolved group", schema.RevokeGroupDevices, `'g7'`},
	{"groups to lock", schema.LockGroupsOf, `'p7'`},
	{"farewells", schema.InsertFarewells, `'p7', 200`},
	{"farewells to contacts", schema.InsertContactFarewells, `'p7'`},
	{"forgetting contacts", schema.ForgetContacts, `'p7'`},
	{"forgetting blocks", schema.ForgetBlocks, `'p7'`},
	{"forgetting memberships", schema.ForgetMemberships, `'p7'`},
	{"directory: accounts", schema.DirectoryAccounts, `ARRAY['p7', 'p8']`},
	{"directory: members", schema.DirectoryMembers, `ARRAY['p7', 'p8']`},
	{"directory: bans", schema.DirectoryBans, `ARRAY['p7', 'p8']`},
	{"directory: blocks", schema.DirectoryBlocks, `ARRAY['p7', 'p8']`},
	{"directory: contacts", schema.DirectoryContacts, `ARRAY['p7', 'p8']`},
	{"directory: revocations", schema.DirectoryRevocations, `ARRAY['p7', 'p8']`},
	{"directory: groups", schema.DirectoryGroups, `ARRAY['g7', 'g8']`},
	{"sessions", schema.SelectSessions, `'p7', now(), 'z', 51`},
	{"devices", schema.SelectDevices, `'', 51`},
	{"devices of a group", schema.SelectGroupDevices, `'', 51, 'g7'`},
	{"profiles", schema.SelectProfiles, `ARRAY['p7', 'p8']`},
	{"identities", schema.SelectIdentities, `'p7'`},
	{"find by phone", schema.FindByPhone, `'+497'`},
	{"registering", schema.InsertAccount, `'new', 'user', ''`},
	{"admission", schema.SelectAdmission, `'p7', ARRAY['s1', 's2'], 's1'`},
	{"changes", schema.SelectChanges, `pg_current_xact_id()::text, 100`},
}

// Ids are padded, so that they are made in the order of the indexes, which takes a
// fraction of the time: P(n) and G(n) in seeds, 'p7' and 'g7' in questions.
var (
	seedID  = regexp.MustCompile(`\b[PG]\((?:[^()]|\([^()]*\))*\)`)
	askedID = regexp.MustCompile(`'[pg]\d+'`)
)

// small are tables that may be scanned: they have a row or a few.
var small = regexp.MustCompile(`Seq Scan on (changes_trimmed|database_identity|pg_\w+)\b`)

// With 1,000,000 people, 100,000 groups and 5,000,000 memberships no list has a
// plan with a sequential scan, neither planned for its arguments nor in general (as
// PostgreSQL plans a prepared statement after some uses).
func TestPlans(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, pgtest.New(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	began := time.Now()
	for _, statement := range seeds {
		start := time.Now()
		statement = seedID.ReplaceAllStringFunc(statement, func(id string) string {
			return "'" + strings.ToLower(id[:1]) + "' || lpad((" + id[2:len(id)-1] + ")::text, 7, '0')"
		})
		if _, err := conn.Exec(ctx, statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Logf("%v: %.60s", took.Round(100*time.Millisecond), statement)
		}
	}
	t.Logf("seeded in %v", time.Since(began).Round(time.Second))
	for i, q := range questions {
		name := fmt.Sprintf("q%d", i)
		if _, err := conn.Exec(ctx, "PREPARE "+name+" AS "+q.query); err != nil {
			t.Errorf("%s: %v", q.name, err)
			continue
		}
		for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
			if _, err := conn.Exec(ctx, "SET plan_cache_mode = "+mode); err != nil {
				t.Fatal(err)
			}
			execute := "EXPLAIN EXECUTE " + name
			if q.args != "" {
				execute += "(" + askedID.ReplaceAllStringFunc(q.args, func(id string) string {
					return id[:2] + strings.Repeat("0", 10-len(id)) + id[2:]
				}) + ")"
			}
			rows, err := conn.Query(ctx, execute, pgx.QueryExecModeSimpleProtocol)
			if err != nil {
				t.Fatalf("%s: %v", q.name, err)
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Errorf("%s: %v", q.name, err)
				continue
			}
			plan := strings.Join(lines, "\n")
			if strings.Contains(small.ReplaceAllString(plan, ""), "Seq Scan") {
				t.Errorf("%s (%s) scans a table:\n%s", q.name, mode, plan)
			}
		}
	}
}
