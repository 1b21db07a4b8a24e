package schema

// Queries of contacts, groups and notices. $n and what each column means are said
// with each. Lists are read by keyset and have an index each; a test shows that
// none scans a table.
const (
	// LockPerson keeps others from changing the contacts or the number of groups
	// of person $1 until the transaction ends.
	LockPerson = `SELECT pg_advisory_xact_lock(hashtextextended('person ' || $1, 0))`

	// SelectRelation gives the state of the contact $2 of $1 (or ''), whether $1
	// has blocked $2, and whether $2 has blocked $1.
	SelectRelation = `
SELECT coalesce((SELECT state FROM contacts WHERE owner = $1 AND peer = $2), ''),
       EXISTS (SELECT FROM blocks WHERE owner = $1 AND peer = $2),
       EXISTS (SELECT FROM blocks WHERE owner = $2 AND peer = $1)`

	// CountContacts gives how many rows in state $2 person $1 has, up to $3.
	CountContacts = `SELECT count(*) FROM (SELECT FROM contacts WHERE owner = $1 AND state = $2 LIMIT $3) c`

	// UpsertContact sets the contact $2 of $1 to state $3 with note $4.
	UpsertContact = `
INSERT INTO contacts (owner, peer, state, note) VALUES ($1, $2, $3, $4)
ON CONFLICT (owner, peer) DO UPDATE SET state = excluded.state, note = excluded.note, since = now()`

	// IsAsked tells whether $1 has asked $2 with note $3 and $2 knows of it, which is
	// not looked at if $4.
	IsAsked = `
SELECT EXISTS (SELECT FROM contacts WHERE owner = $1 AND peer = $2 AND state = 'asked' AND note = $3)
   AND ($4 OR EXISTS (SELECT FROM contacts WHERE owner = $2 AND peer = $1 AND state = 'incoming' AND note = $3))`

	// DeleteContact deletes the contact $2 of $1; DeleteContactPair that of $2, too.
	DeleteContact     = `DELETE FROM contacts WHERE owner = $1 AND peer = $2`
	DeleteContactPair = `DELETE FROM contacts WHERE owner = $1 AND peer = $2 OR owner = $2 AND peer = $1`

	// UpdateRemark sets what $1 calls contact $2 to $3.
	UpdateRemark = `UPDATE contacts SET remark = $3 WHERE owner = $1 AND peer = $2 AND state = 'contact'`

	// SelectContact gives peer, remark, since of contact $2 of $1.
	SelectContact = `SELECT peer, remark, since FROM contacts WHERE owner = $1 AND peer = $2 AND state = 'contact'`

	// SelectContacts gives peer, remark, since of $1's contacts after $2, at most $3.
	SelectContacts = `
SELECT peer, remark, since FROM contacts
WHERE owner = $1 AND state = 'contact' AND peer > $2 ORDER BY peer LIMIT $3`

	// SelectRequests gives peer, note, since of $1's requests in state $2 (asked
	// or incoming), newest first: those before since $3 and peer $4, at most $5.
	SelectRequests = `
SELECT peer, note, since FROM contacts
WHERE owner = $1 AND state = $2 AND state <> 'contact' AND (since, peer) < ($3, $4)
ORDER BY since DESC, peer DESC LIMIT $5`

	// InsertBlock has $1 block $2; DeleteBlock undoes it.
	InsertBlock = `INSERT INTO blocks (owner, peer) VALUES ($1, $2) ON CONFLICT DO NOTHING`
	DeleteBlock = `DELETE FROM blocks WHERE owner = $1 AND peer = $2`

	// CountBlocks gives how many $1 has blocked.
	CountBlocks = `SELECT count(*) FROM blocks WHERE owner = $1`

	// SelectBlocks gives peer, since of whom $1 has blocked after $2, at most $3.
	SelectBlocks = `SELECT peer, since FROM blocks WHERE owner = $1 AND peer > $2 ORDER BY peer LIMIT $3`

	// SelectPrivacy gives write_policy and presence_policy of account $1, '' for
	// the default.
	SelectPrivacy = `SELECT coalesce(write_policy, ''), coalesce(presence_policy, '') FROM accounts WHERE id = $1`

	// UpdatePrivacy sets write_policy $2 and presence_policy $3 of account $1:
	// NULL leaves it, '' is the default.
	UpdatePrivacy = `
UPDATE accounts SET write_policy = CASE WHEN $2::text IS NULL THEN write_policy ELSE nullif($2, '') END,
    presence_policy = CASE WHEN $3::text IS NULL THEN presence_policy ELSE nullif($3, '') END, updated_at = now()
WHERE id = $1 AND deleted_at IS NULL`

	// SelectAcquainted gives those of the ids $2 that are contacts of $1 or in a
	// common group that is not open (anybody can be in one of those).
	SelectAcquainted = `
SELECT peer FROM contacts WHERE owner = $1 AND state = 'contact' AND peer = ANY ($2::text[])
UNION
SELECT them.account FROM members me JOIN groups g ON g.id = me.grp JOIN members them ON them.grp = me.grp
WHERE me.account = $1 AND g.join_policy <> 'open' AND them.account = ANY ($2::text[])`

	selectGroup = `
SELECT g.id, g.name, g.avatar, g.announcement, g.ext, g.join_policy, g.muted, g.members, g.created_at, g.dissolved_at IS NOT NULL`

	// SelectStanding gives group $1 (id, name, avatar, announcement, ext,
	// join_policy, muted, members, created_at, dissolved) and of account $2 in it:
	// role ('' for none), nickname, muted_until, joined_at, banned, invited.
	SelectStanding = selectGroup + `,
       coalesce(m.role, ''), coalesce(m.nickname, ''), m.muted_until, m.joined_at,
       EXISTS (SELECT FROM bans b WHERE b.grp = g.id AND b.account = $2),
       EXISTS (SELECT FROM invitations i WHERE i.grp = g.id AND i.account = $2 AND i.expires_at > now() AND NOT i.hidden)
FROM groups g LEFT JOIN members m ON m.grp = g.id AND m.account = $2
WHERE g.id = $1`

	// LockGroup keeps others from changing group $1 until the transaction ends.
	LockGroup = `SELECT id FROM groups WHERE id = $1 FOR NO KEY UPDATE`

	// LockGroupsOf does that for all groups that account $1 is in, in the order of
	// their ids, so that two who do it cannot wait for each other.
	LockGroupsOf = `
SELECT id FROM groups WHERE id IN (SELECT grp FROM members WHERE account = $1) ORDER BY id FOR NO KEY UPDATE`

	// IsDeleted tells whether account $1 has been deleted.
	IsDeleted = `SELECT EXISTS (SELECT FROM accounts WHERE id = $1 AND deleted_at IS NOT NULL)`

	// InsertGroup makes group $1: name $2, avatar $3, announcement $4, ext $5,
	// join_policy $6. It affects no row if the id is or was in use.
	InsertGroup = `
INSERT INTO groups (id, name, avatar, announcement, ext, join_policy) VALUES ($1, $2, $3, $4, $5::jsonb, $6)
ON CONFLICT (id) DO NOTHING`

	// UpdateGroup changes group $1: name $2, avatar $3, announcement $4, ext $5,
	// join_policy $6, muted $7; what is NULL stays.
	UpdateGroup = `
UPDATE groups SET name = coalesce($2, name), avatar = coalesce($3, avatar), announcement = coalesce($4, announcement),
    ext = coalesce($5::jsonb, ext), join_policy = coalesce($6, join_policy), muted = coalesce($7, muted), updated_at = now()
WHERE id = $1`

	// DissolveGroup marks group $1 as dissolved. Its members are removed once they
	// have the notice: DeleteDissolvedMembers.
	DissolveGroup = `UPDATE groups SET dissolved_at = now(), updated_at = now() WHERE id = $1`

	// DeleteGroupLeavings deletes the requests, invitations and links of group $1,
	// a statement each.
	DeleteGroupRequests    = `DELETE FROM join_requests WHERE grp = $1`
	DeleteGroupInvitations = `DELETE FROM invitations WHERE grp = $1`
	DeleteGroupLinks       = `DELETE FROM invitation_links WHERE grp = $1`

	// RevokeGroupDevices revokes the credentials of the devices of group $1.
	RevokeGroupDevices = `
UPDATE device_credentials SET revoked_at = now()
WHERE revoked_at IS NULL AND account = ANY (ARRAY(SELECT account FROM devices WHERE grp = $1))`

	// DeleteDissolvedMembers removes at most $1 members of a dissolved group about
	// which no notice is waiting any more.
	DeleteDissolvedMembers = `
WITH gone AS (
    SELECT id FROM groups g WHERE dissolved_at IS NOT NULL AND members > 0
    AND NOT EXISTS (SELECT FROM outbox o WHERE o.topic = 'group/' || g.id) ORDER BY id LIMIT 1)
DELETE FROM members WHERE grp = (SELECT id FROM gone) AND account = ANY (ARRAY(
    SELECT account FROM members WHERE grp = (SELECT id FROM gone) ORDER BY account LIMIT $1))`

	// SelectMyGroups gives group and standing (as SelectStanding, less the last
	// two) of the groups that account $1 is in, after id $2, at most $3.
	SelectMyGroups = selectGroup + `,
       m.role, m.nickname, m.muted_until, m.joined_at
FROM members m JOIN groups g ON g.id = m.grp
WHERE m.account = $1 AND m.grp > $2 AND g.dissolved_at IS NULL ORDER BY m.grp LIMIT $3`

	// CountGroups gives how many groups account $1 is in.
	CountGroups = `SELECT count(*) FROM members WHERE account = $1`

	// SelectOwned gives the groups that account $1 owns.
	SelectOwned = `SELECT m.grp FROM members m WHERE m.account = $1 AND m.role = 'owner' ORDER BY m.grp`

	// InsertMember makes account $2 a member of group $1 with role $3. It affects
	// no row if it is one.
	InsertMember = `INSERT INTO members (grp, account, role) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`

	// DeleteMember removes account $2 from group $1.
	DeleteMember = `DELETE FROM members WHERE grp = $1 AND account = $2`

	// SelectMember gives account, role, nickname, muted_until (if it is to come),
	// joined_at of member $2 of group $1.
	SelectMember = selectMember + `WHERE grp = $1 AND account = $2`

	selectMember = `
SELECT account, role, nickname, CASE WHEN muted_until > now() THEN muted_until END, joined_at FROM members `

	// SelectMembers gives the same of at most $3 members of group $1 after
	// account $2; SelectStaff of the owner and the admins.
	SelectMembers = selectMember + `WHERE grp = $1 AND account > $2 ORDER BY account LIMIT $3`
	SelectStaff   = `
SELECT account, role, nickname, CASE WHEN muted_until > now() THEN muted_until END, joined_at FROM (
    (SELECT * FROM members WHERE grp = $1 AND role = 'owner' AND account > $2)
    UNION ALL (SELECT * FROM members WHERE grp = $1 AND role = 'admin' AND account > $2)) staff
ORDER BY account LIMIT $3`

	// SelectOwner gives the owner of group $1.
	SelectOwner = `SELECT account FROM members WHERE grp = $1 AND role = 'owner'`

	// CountAdmins gives how many admins group $1 has.
	CountAdmins = `SELECT count(*) FROM members WHERE grp = $1 AND role = 'admin'`

	// SelectSuccessor gives who takes group $1 over from account $2: the admin
	// who joined first; without one the member who did. Devices, services and the
	// disabled do not: a person is to be asked for what happens in a group. Whom
	// only tokens speak of may have no account yet. Members are sorted first and
	// looked up one after the other until one fits, which takes a moment in a large
	// group; but it is asked only when an owner's account is deleted.
	SelectSuccessor = `
SELECT account FROM (
    (SELECT account, 0 AS rank FROM (
        SELECT account, joined_at FROM members WHERE grp = $1 AND role = 'admin' AND account <> $2
        ORDER BY joined_at, account OFFSET 0) m ` + whereHeir + `)
    UNION ALL
    (SELECT account, 1 FROM (
        SELECT account, joined_at FROM members WHERE grp = $1 AND account <> $2
        ORDER BY joined_at, account OFFSET 0) m ` + whereHeir + `)) s
ORDER BY rank LIMIT 1`

	whereHeir = `WHERE coalesce((SELECT a.kind = 'user' AND a.disabled_at IS NULL AND a.deleted_at IS NULL
        FROM accounts a WHERE a.id = m.account), true) ORDER BY joined_at, account LIMIT 1`

	// IsDevice tells whether account $1 is a device's.
	IsDevice = `SELECT EXISTS (SELECT FROM accounts WHERE id = $1 AND kind = 'device')`

	// UpdateMemberRole sets the role of member $2 of group $1 to $3.
	UpdateMemberRole = `UPDATE members SET role = $3 WHERE grp = $1 AND account = $2`

	// UpdateMemberMute mutes member $2 of group $1 until $3 (NULL: not).
	UpdateMemberMute = `UPDATE members SET muted_until = $3 WHERE grp = $1 AND account = $2`

	// UpdateMemberNickname sets the nickname of member $2 of group $1 to $3.
	UpdateMemberNickname = `UPDATE members SET nickname = $3 WHERE grp = $1 AND account = $2`

	// InsertBan bans account $2 from group $1, by $3 for reason $4; a trigger
	// removes the membership. DeleteBan lifts it.
	InsertBan = `INSERT INTO bans (grp, account, by, reason) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`
	DeleteBan = `DELETE FROM bans WHERE grp = $1 AND account = $2`

	// CountBans gives how many group $1 has banned, up to $2.
	CountBans = `SELECT count(*) FROM (SELECT FROM bans WHERE grp = $1 LIMIT $2) b`

	// SelectBans gives account, by, reason, at of those banned from group $1 after
	// account $2, at most $3.
	SelectBans = `SELECT account, by, reason, at FROM bans WHERE grp = $1 AND account > $2 ORDER BY account LIMIT $3`

	// InsertJoinRequest notes that account $2 asks to join group $1 with note $3. It
	// affects no row if it does already; UpdateJoinRequest then changes the note.
	InsertJoinRequest = `INSERT INTO join_requests (grp, account, note) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	UpdateJoinRequest = `UPDATE join_requests SET note = $3 WHERE grp = $1 AND account = $2`

	// CountJoinRequests gives how many ask to join group $1, up to $2.
	CountJoinRequests = `SELECT count(*) FROM (SELECT FROM join_requests WHERE grp = $1 LIMIT $2) r`

	// DeleteJoinRequest ends the request of account $2 to join group $1.
	DeleteJoinRequest = `DELETE FROM join_requests WHERE grp = $1 AND account = $2`

	// SelectJoinRequests gives account, note, at of who asks to join group $1,
	// oldest first: those after at $2 and account $3, at most $4.
	SelectJoinRequests = `
SELECT account, note, at FROM join_requests WHERE grp = $1 AND (at, account) > ($2, $3)
ORDER BY at, account LIMIT $4`

	// UpsertInvitation invites account $2 to group $1, by $3, for $4, hidden from
	// the account if $5. One that is valid stays as it is, but for being hidden no
	// more: else those would differ, in the list, who are invited once more.
	UpsertInvitation = `
INSERT INTO invitations AS i (grp, account, by, expires_at, hidden) VALUES ($1, $2, $3, now() + $4::interval, $5)
ON CONFLICT (grp, account) DO UPDATE SET
    by = CASE WHEN i.expires_at > now() THEN i.by ELSE excluded.by END,
    at = CASE WHEN i.expires_at > now() THEN i.at ELSE now() END,
    expires_at = CASE WHEN i.expires_at > now() THEN i.expires_at ELSE excluded.expires_at END,
    hidden = excluded.hidden AND (i.hidden OR i.expires_at <= now())`

	// CountInvitations gives how many are invited to group $1, up to $2.
	CountInvitations = `SELECT count(*) FROM (SELECT FROM invitations WHERE grp = $1 LIMIT $2) i`

	// DeleteInvitation ends the invitation of account $2 to group $1.
	DeleteInvitation = `DELETE FROM invitations WHERE grp = $1 AND account = $2`

	// SelectInvitations gives account, by, at, expires_at of who is invited to
	// group $1, after account $2, at most $3.
	SelectInvitations = `
SELECT account, by, at, expires_at FROM invitations
WHERE grp = $1 AND account > $2 AND expires_at > now() ORDER BY account LIMIT $3`

	// SelectMyInvitations gives group, its name, avatar and members, by, at,
	// expires_at of the groups that account $1 is invited to, after id $2, at most $3.
	SelectMyInvitations = `
SELECT i.grp, g.name, g.avatar, g.members, i.by, i.at, i.expires_at
FROM invitations i JOIN groups g ON g.id = i.grp
WHERE i.account = $1 AND i.grp > $2 AND i.expires_at > now() AND NOT i.hidden ORDER BY i.grp LIMIT $3`

	// InsertLink makes link $1 to group $2 with token's hash $3, by $4, for $5,
	// for at most $6 uses (or NULL).
	InsertLink = `
INSERT INTO invitation_links (id, grp, token, by, expires_at, max_uses) VALUES ($1, $2, $3, $4, now() + $5::interval, $6)
RETURNING expires_at, created_at`

	// CountLinks gives how many links to group $1 there are, revoked ones included.
	CountLinks = `SELECT count(*) FROM invitation_links WHERE grp = $1`

	// SelectLinkGroup gives the group of the link with token's hash $1.
	SelectLinkGroup = `SELECT grp FROM invitation_links WHERE token = $1 AND revoked_at IS NULL AND expires_at > now()`

	// UseLink counts a use of the link with token's hash $1. It affects no row if
	// the link is not valid any more.
	UseLink = `
UPDATE invitation_links SET uses = uses + 1
WHERE token = $1 AND revoked_at IS NULL AND expires_at > now() AND (max_uses IS NULL OR uses < max_uses)`

	// RevokeLink revokes link $2 to group $1.
	RevokeLink = `UPDATE invitation_links SET revoked_at = now() WHERE grp = $1 AND id = $2 AND revoked_at IS NULL`

	// SelectLinks gives id, by, uses, max_uses (or NULL), created_at, expires_at of
	// the valid links to group $1 after id $2, at most $3.
	SelectLinks = `
SELECT id, by, uses, max_uses, created_at, expires_at FROM invitation_links
WHERE grp = $1 AND id > $2 AND revoked_at IS NULL AND expires_at > now() ORDER BY id LIMIT $3`

	// InsertFarewells puts a notice that account $1 has left into the outbox for each
	// group that it is in and that has at most $2 members.
	InsertFarewells = `
INSERT INTO outbox (topic, type, body)
SELECT 'group/' || g.id, 'notice.group.left', jsonb_build_object('group', g.id, 'who', $1::text)
FROM members m JOIN groups g ON g.id = m.grp
WHERE m.account = $1 AND g.dissolved_at IS NULL AND g.members <= $2 ORDER BY g.id`

	// InsertContactFarewells puts a notice into the outbox for everybody whose contact
	// account $1 is, whom it has asked, or who has asked it.
	InsertContactFarewells = `
INSERT INTO outbox (topic, type, body)
SELECT 'user/' || owner, CASE state WHEN 'contact' THEN 'notice.contact.removed' WHEN 'incoming' THEN 'notice.contact.withdrawn'
    ELSE 'notice.contact.declined' END, jsonb_build_object('who', $1::text)
FROM contacts WHERE peer = $1 ORDER BY owner`

	// These delete what is known of person $1, in every table.
	ForgetContacts     = `DELETE FROM contacts WHERE owner = $1 OR peer = $1`
	ForgetBlocks       = `DELETE FROM blocks WHERE owner = $1 OR peer = $1`
	ForgetJoinRequests = `DELETE FROM join_requests WHERE account = $1`
	ForgetInvitations  = `DELETE FROM invitations WHERE account = $1`
	ForgetMemberships  = `DELETE FROM members WHERE account = $1`

	// InsertNotice puts a notice of type $2 with body $3 for topic $1 into the outbox.
	InsertNotice = `INSERT INTO outbox (topic, type, body) VALUES ($1, $2, $3::jsonb)`

	// InsertStaffNotice puts a notice of type $2 with body $3 for the owner and the
	// admins of group $1 into the outbox.
	InsertStaffNotice = `
INSERT INTO outbox (topic, type, body)
SELECT 'user/' || account, $2, $3::jsonb FROM (
    SELECT account FROM members WHERE grp = $1 AND role = 'owner'
    UNION ALL SELECT account FROM members WHERE grp = $1 AND role = 'admin') staff ORDER BY account`

	// SelectOutbox gives id, mid, topic, type, body (text) of the $1 oldest notices.
	SelectOutbox = `SELECT id, mid, topic, type, body::text FROM outbox ORDER BY id LIMIT $1`

	// DeleteOutbox deletes the notices $1 (ids).
	DeleteOutbox = `DELETE FROM outbox WHERE id = ANY ($1::bigint[])`
)

// Queries of the broker's directory. All take arrays of ids, and give the id first.
const (
	// DirectoryAccounts gives id, whether it can sign in here, whether it is
	// refused (disabled or deleted), whether it is deleted, write_policy,
	// presence_policy ('' for the default).
	DirectoryAccounts = `
SELECT id, EXISTS (SELECT FROM identities i WHERE i.account = accounts.id),
       disabled_at IS NOT NULL OR deleted_at IS NOT NULL, deleted_at IS NOT NULL,
       coalesce(write_policy, ''), coalesce(presence_policy, '')
FROM accounts WHERE id = ANY ($1::text[])`

	// DirectoryRevocations gives account, session of what was revoked.
	DirectoryRevocations = `SELECT account, session FROM revocations WHERE account = ANY ($1::text[])`

	// DirectoryMembers gives account, grp, whether the role may speak when all are
	// muted, muted_until (or NULL).
	DirectoryMembers = `SELECT account, grp, role <> 'member', muted_until FROM members WHERE account = ANY ($1::text[])`

	// DirectoryBans gives account, grp; DirectoryBlocks owner, peer;
	// DirectoryContacts owner, peer.
	DirectoryBans     = `SELECT account, grp FROM bans WHERE account = ANY ($1::text[])`
	DirectoryBlocks   = `SELECT owner, peer FROM blocks WHERE owner = ANY ($1::text[])`
	DirectoryContacts = `SELECT owner, peer FROM contacts WHERE owner = ANY ($1::text[]) AND state = 'contact'`

	// DirectoryGroups gives id, join_policy, muted, dissolved.
	DirectoryGroups = `SELECT id, join_policy, muted, dissolved_at IS NOT NULL FROM groups WHERE id = ANY ($1::text[])`

	// DirectoryKeys gives kid of the API's own keys that verify.
	DirectoryKeys = `SELECT kid FROM signing_keys WHERE expires_at IS NULL OR expires_at > now()`

	// DirectoryIdentity gives what tells this database from others, copies of it
	// in the same cluster included.
	DirectoryIdentity = `
SELECT i.id::text || '/' || d.oid FROM database_identity i, pg_database d WHERE d.datname = current_database()`

	// DirectoryClaim makes accounts $1 (an array, in order) of kinds $2 for tokens that
	// others signed. It leaves those that are there.
	DirectoryClaim = `
INSERT INTO accounts (id, kind, seen_at) SELECT id, kind, now() FROM unnest($1::text[], $2::text[]) AS t (id, kind)
ON CONFLICT (id) DO NOTHING`

	// DirectorySeen notes that the accounts $1 were seen now, to the minute.
	DirectorySeen = `
UPDATE accounts SET seen_at = now()
WHERE id = ANY ($1::text[]) AND (seen_at IS NULL OR seen_at < now() - interval '1 minute')`
)

// SocialSweeps returns the statements that delete what has expired of
// invitations. Each deletes a bounded number of rows.
func SocialSweeps() []string {
	return []string{
		`DELETE FROM invitations WHERE ctid IN (SELECT ctid FROM invitations WHERE expires_at < now() LIMIT 20000)`,
		`DELETE FROM invitation_links WHERE ctid IN (SELECT ctid FROM invitation_links WHERE expires_at < now() LIMIT 20000)`,
	}
}
