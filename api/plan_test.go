package api_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"mynah/schema"
)

// Every query that people wait for goes by an index, also among many accounts.
func TestPlansOfAccountQueries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`INSERT INTO accounts (id, find_by_phone) SELECT 'u' || n, n % 2 = 0 FROM generate_series(1, 20000) n`)
	w.exec(`INSERT INTO identities (provider, subject, account) SELECT 'phone', '+86' || (13000000000 + n), 'u' || n FROM generate_series(1, 20000) n`)
	w.exec(`INSERT INTO sessions (id, account, method, family, token, expires_at)
		SELECT 's' || n, 'u' || (n % 5000 + 1), 'phone', sha256(('f' || n)::bytea), sha256(('t' || n)::bytea), now() + interval '1 day' FROM generate_series(1, 20000) n`)
	w.exec(`INSERT INTO devices (account, grp, created_by) SELECT 'u' || n, 'g' || n % 500, 'boss' FROM generate_series(1, 20000) n`)
	w.exec(`INSERT INTO device_credentials (id, account, jwk) SELECT 'device.' || n, 'u' || n, '{}' FROM generate_series(1, 20000) n`)
	w.exec(`INSERT INTO revocations (session, account, expires_at) SELECT 'r' || n, 'u' || n, now() + interval '1 day' FROM generate_series(1, 20000) n`)
	w.exec(`INSERT INTO codes (challenge, channel, target, purpose, code, sent, expires_at)
		SELECT sha256(('c' || n)::bytea), 'phone', '+86' || (13000000000 + n), 'signin', sha256(('d' || n)::bytea), true, now() + interval '5 minutes' FROM generate_series(1, 20000) n`)
	w.exec(`ANALYSE`)
	hash := make([]byte, 32)
	for name, q := range map[string]struct {
		sql  string
		args []any
	}{
		"SelectAdmission":       {schema.SelectAdmission, []any{"u7", []string{"s7", "j"}, "s7"}},
		"SelectAccount":         {schema.SelectAccount, []any{"u7"}},
		"SelectProfiles":        {schema.SelectProfiles, []any{[]string{"u7", "u8"}}},
		"FindByID":              {schema.FindByID, []any{"u7"}},
		"FindByPhone":           {schema.FindByPhone, []any{"+8613000000008"}},
		"FindByMail":            {schema.FindByMail, []any{"a@b.de"}},
		"SelectIdentity":        {schema.SelectIdentity, []any{"phone", "+8613000000008", nil}},
		"SelectIdentities":      {schema.SelectIdentities, []any{"u7"}},
		"SelectPassword":        {schema.SelectPassword, []any{"u7"}},
		"InsertAccount":         {schema.InsertAccount, []any{"new", "user", ""}},
		"InsertCode":            {schema.InsertCode, []any{hash, "phone", "+8613000000008", "signin", hash, true, time.Minute, 5}},
		"TryCode":               {schema.TryCode, []any{hash, "signin", 5}},
		"SelectSessionByFamily": {schema.SelectSessionByFamily, []any{hash, time.Minute}},
		"SelectSessions":        {schema.SelectSessions, []any{"u7", time.Now(), "", 50}},
		"DeleteSessions":        {schema.DeleteSessions, []any{"u7", "s7"}},
		"DeleteOldestSessions":  {schema.DeleteOldestSessions, []any{"u7", 100}},
		"SelectDevice":          {schema.SelectDevice, []any{"u7"}},
		"SelectDevices":         {schema.SelectDevices, []any{"u7", 50}},
		"SelectGroupDevices":    {schema.SelectGroupDevices, []any{"", 50, "g7"}},
		"SelectDeviceKey":       {schema.SelectDeviceKey, []any{"device.7"}},
		"RevokeDeviceAccess":    {schema.RevokeDeviceAccess, []any{"u7"}},
		"SelectChanges":         {schema.SelectChanges, []any{"1", 100}},
	} {
		rows, err := w.db.Query(context.Background(), "EXPLAIN "+q.sql, q.args...)
		must(t, err)
		var plan strings.Builder
		for rows.Next() {
			var line string
			must(t, rows.Scan(&line))
			plan.WriteString(line + "\n")
		}
		must(t, rows.Err())
		for _, table := range []string{"accounts", "identities", "sessions", "devices", "device_credentials", "revocations", "codes"} {
			if strings.Contains(plan.String(), "Seq Scan on "+table+" ") {
				t.Errorf("%s scans %s:\n%s", name, table, plan.String())
			}
		}
	}
}
