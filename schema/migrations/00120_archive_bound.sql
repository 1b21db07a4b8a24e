-- +goose Up

-- Table messages becomes partitioned by seq while it is in use, in three steps (00120 to
-- 00122), each of which is whole or has not happened. This one gives the table an upper
-- bound, which new rows are held against and those that are there not yet. It waits for
-- the table for a second at a time, so that nobody queues behind it for longer.

-- Unless nothing stands in the way. 00122 asks again and drops it.
-- +goose StatementBegin
CREATE FUNCTION archive_obstacles() RETURNS text LANGUAGE sql STABLE AS $$
    WITH depending AS (
        SELECT DISTINCT c.oid, c.relkind, c.relowner, r.rulename
        FROM pg_depend d
        JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
        JOIN pg_class c ON c.oid = r.ev_class
        WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass('messages')
            AND c.oid <> d.refobjid AND pg_is_other_temp_schema(c.relnamespace) IS NOT TRUE
    ), obstacles (what) AS (
        SELECT format('materialized view %s', oid::regclass) FROM depending WHERE relkind = 'm'
        UNION ALL
        SELECT format('view %s, which belongs to role %s', oid::regclass, pg_get_userbyid(relowner)) FROM depending
        WHERE relkind = 'v' AND NOT pg_has_role(relowner, 'USAGE')
        UNION ALL
        SELECT format('rule %I on table %s', rulename, oid::regclass) FROM depending WHERE relkind NOT IN ('m', 'v')
        UNION ALL
        SELECT format('rule %I on table messages', rulename) FROM pg_rewrite WHERE ev_class = to_regclass('messages')
        UNION ALL
        SELECT format('foreign key %I of table %s', conname, conrelid::regclass) FROM pg_constraint
        WHERE contype = 'f' AND confrelid = to_regclass('messages')
        UNION ALL
        SELECT format('constraint %I, which is not validated', conname) FROM pg_constraint
        WHERE contype = 'f' AND conrelid = to_regclass('messages') AND NOT convalidated
        UNION ALL
        SELECT format('constraint %I, which is NO INHERIT', conname) FROM pg_constraint
        WHERE contype = 'c' AND conrelid = to_regclass('messages') AND connoinherit
        UNION ALL
        SELECT format('row policy %I', polname) FROM pg_policy WHERE polrelid = to_regclass('messages')
        UNION ALL
        SELECT 'row level security' FROM pg_class WHERE oid = to_regclass('messages') AND relrowsecurity
        UNION ALL
        SELECT format('publication %I', p.pubname) FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
        WHERE r.prrelid = to_regclass('messages')
        UNION ALL
        SELECT format('inheritance between %s and %s', inhparent::regclass, inhrelid::regclass) FROM pg_inherits
        WHERE to_regclass('messages') IN (inhparent, inhrelid)
        UNION ALL
        SELECT format('function %s', objid::regprocedure) FROM pg_depend
        WHERE classid = 'pg_proc'::regclass AND refclassid = 'pg_class'::regclass AND refobjid = to_regclass('messages')
    )
    SELECT string_agg(what, '; ' ORDER BY what) FROM obstacles
$$;
-- +goose StatementEnd

-- +goose StatementBegin
DO $$
DECLARE
    patience int := (SELECT setting FROM pg_settings WHERE name = 'lock_timeout'); -- in milliseconds, 0 for no end
    deadline timestamptz := CASE WHEN patience = 0 THEN 'infinity' ELSE clock_timestamp() + patience * interval '1 millisecond' END;
    obstacles text;
    newest bigint;
    bound bigint;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = 'messages'::regclass) = 'p' THEN
        RETURN;
    END IF;
    obstacles := archive_obstacles();
    IF obstacles IS NOT NULL THEN
        RAISE 'table messages becomes partitioned, and these would not go with it: %; drop them, run mynah migrate, and make them again', obstacles
            USING ERRCODE = 'feature_not_supported';
    END IF;
    LOOP
        BEGIN
            PERFORM set_config('lock_timeout', CASE WHEN patience BETWEEN 1 AND 1000 THEN patience ELSE 1000 END::text, true);
            LOCK TABLE messages IN ACCESS EXCLUSIVE MODE;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() >= deadline THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(0.5);
        END;
    END LOOP;
    -- An archiver goes on writing below the bound until the third step. So there is room
    -- for a quarter of what is there (a row takes 400 bytes and more), and for 2^24.
    SELECT coalesce(max(seq), 0) INTO newest FROM messages;
    IF newest = 0 THEN
        bound := 16777216;
    ELSE
        bound := ((newest + greatest(16777216, pg_relation_size('messages') / 1600)) / 16777216 + 1) * 16777216;
    END IF;
    EXECUTE format('ALTER TABLE messages ADD CONSTRAINT messages_until_%1$s CHECK (seq >= 0 AND seq < %1$s) NOT VALID', bound);
END $$;
-- +goose StatementEnd
