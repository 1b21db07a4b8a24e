-- +goose Up

-- The third step: what was table messages becomes the first partition of a new one that
-- has its name, its columns and all that belongs to it. Nothing is read or copied, so it
-- takes a moment, once it has the table.

CREATE TABLE archive_position (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    seq bigint  NOT NULL CHECK (seq >= 0)
) WITH (fillfactor = 10); -- it is changed with each batch, in place
COMMENT ON TABLE archive_position IS 'How far the archive has come, in one row.';
COMMENT ON COLUMN archive_position.seq IS 'The greatest seq that has been stored in table messages, of those that are there still or not.';

CREATE VIEW archive_partitions AS
SELECT c.oid::regclass AS name, n.nspname AS schema, c.relname AS relation,
    CASE bound[1] WHEN 'MINVALUE' THEN 0 ELSE trim('''' FROM bound[1])::bigint END AS from_seq,
    CASE bound[2] WHEN 'MAXVALUE' THEN 9007199254740992 ELSE trim('''' FROM bound[2])::bigint END AS to_seq
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_namespace n ON n.oid = c.relnamespace,
    regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM \((.*)\) TO \((.*)\)$') AS bound
WHERE i.inhparent = to_regclass('messages') AND bound IS NOT NULL;
COMMENT ON VIEW archive_partitions IS 'The partitions of table messages: each has the messages of from_seq up to, and without, to_seq.';

-- archive_add_partition gives table messages a partition for from_seq up to, and without,
-- to_seq. It is made like the newest one, so that it has what was added to that, too:
-- unique indexes without seq, and settings. Reading and writing go on meanwhile.
-- +goose StatementBegin
CREATE FUNCTION archive_add_partition(from_seq bigint, to_seq bigint) RETURNS regclass LANGUAGE plpgsql AS $$
DECLARE
    parent pg_class;
    model pg_class;
    namespace name;
    fresh text;
    tried int := 0;
    bound name;
BEGIN
    SELECT * INTO STRICT parent FROM pg_class WHERE oid = 'messages'::regclass;
    SELECT nspname INTO namespace FROM pg_namespace WHERE oid = parent.relnamespace;
    SELECT c.* INTO model FROM archive_partitions p JOIN pg_class c ON c.oid = p.name ORDER BY p.from_seq DESC LIMIT 1;
    IF NOT FOUND THEN
        model := parent;
    END IF;
    fresh := format('%I.%I', namespace, 'messages_from_' || from_seq);
    WHILE to_regclass(fresh) IS NOT NULL LOOP -- one that somebody has taken out and kept
        tried := tried + 1;
        fresh := format('%I.%I', namespace, format('messages_from_%s_%s', from_seq, tried));
    END LOOP;
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING IDENTITY) %s', fresh, model.oid::regclass,
        CASE WHEN model.relkind = 'r' AND model.reloptions IS NOT NULL THEN 'WITH (' || array_to_string(model.reloptions, ', ') || ')' END);
    FOR bound IN SELECT conname FROM pg_constraint WHERE conrelid = fresh::regclass AND conname LIKE 'messages\_until\_%' LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', fresh, bound); -- a cut of the model is under way
    END LOOP;
    IF parent.relowner <> (SELECT relowner FROM pg_class WHERE oid = fresh::regclass) THEN
        EXECUTE format('ALTER TABLE %s OWNER TO %I', fresh, pg_get_userbyid(parent.relowner));
    END IF;
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)', parent.oid::regclass, fresh, from_seq, to_seq);
    RETURN fresh::regclass;
END $$;
-- +goose StatementEnd

-- archive_end_partition ends a partition at the bound that its constraint
-- messages_until_<bound> has, and gives the rest of its range to a new one. The
-- constraint has been validated, so that nothing is read. It tells whether it did.
-- +goose StatementBegin
CREATE FUNCTION archive_end_partition(part regclass, bound bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    was archive_partitions;
BEGIN
    LOCK TABLE messages IN ACCESS EXCLUSIVE MODE;
    SELECT * INTO was FROM archive_partitions WHERE name = part;
    IF NOT FOUND OR NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = part AND conname = 'messages_until_' || bound AND convalidated) THEN
        RETURN false; -- somebody else was faster
    END IF;
    IF bound >= was.to_seq THEN -- it has been ended below that
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT messages_until_%s', part, bound);
        RETURN false;
    END IF;
    EXECUTE format('ALTER TABLE messages DETACH PARTITION %s', part);
    EXECUTE format('ALTER TABLE messages ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)', part, was.from_seq, bound);
    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT messages_until_%s', part, bound);
    PERFORM archive_add_partition(bound, was.to_seq);
    RETURN true;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
DO $$
DECLARE
    patience int := (SELECT setting FROM pg_settings WHERE name = 'lock_timeout');
    deadline timestamptz := CASE WHEN patience = 0 THEN 'infinity' ELSE clock_timestamp() + patience * interval '1 millisecond' END;
    was pg_class;
    namespace name;
    old text;
    obstacles text;
    bound bigint;
    owned record;
    last_value bigint;
    is_called boolean;
    before text[] := '{}'; -- what is done to the table while it is what it was
    after text[] := '{}';  -- and what to its successor, as soon as that has the partition
    indexes text[] := '{}';
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = 'messages'::regclass) = 'p' THEN
        RETURN;
    END IF;
    -- Views before the table: who reads one locks them in that order.
    LOOP
        BEGIN
            PERFORM set_config('lock_timeout', CASE WHEN patience BETWEEN 1 AND 1000 THEN patience ELSE 1000 END::text, true);
            FOR owned IN
                SELECT DISTINCT c.oid::regclass AS name
                FROM pg_depend d
                JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
                JOIN pg_class c ON c.oid = r.ev_class
                WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = 'messages'::regclass
                    AND c.relkind = 'v' AND NOT pg_is_other_temp_schema(c.relnamespace)
            LOOP
                EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', owned.name);
            END LOOP;
            LOCK TABLE messages IN ACCESS EXCLUSIVE MODE;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() >= deadline THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(0.5);
        END;
    END LOOP;
    PERFORM set_config('lock_timeout', patience::text, true);

    obstacles := archive_obstacles();
    IF obstacles IS NOT NULL THEN
        RAISE 'table messages becomes partitioned, and these would not go with it: %; drop them, run mynah migrate, and make them again', obstacles
            USING ERRCODE = 'feature_not_supported';
    END IF;
    SELECT * INTO STRICT was FROM pg_class WHERE oid = 'messages'::regclass;
    SELECT nspname INTO namespace FROM pg_namespace WHERE oid = was.relnamespace;
    SELECT substring(conname FROM '\d+$')::bigint INTO STRICT bound FROM pg_constraint
    WHERE conrelid = was.oid AND conname LIKE 'messages\_until\_%' AND convalidated;
    old := format('%I.messages_from_0', namespace);

    -- Definitions are taken down while the name is the table's. Indexes get a name of the
    -- partition's, but for the key: archivers of the version before know it by that.
    FOR owned IN
        SELECT c.relname, c.oid::regclass AS name, pg_get_indexdef(c.oid) AS definition, con.conname, pg_get_constraintdef(con.oid) AS condef, i.indisprimary,
            (NOT i.indisunique OR (SELECT attnum FROM pg_attribute WHERE attrelid = was.oid AND attname = 'seq') = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
                AND NOT i.indisexclusion AND i.indisvalid AS general,
            obj_description(c.oid, 'pg_class') AS description
        FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid
        LEFT JOIN pg_constraint con ON con.conindid = i.indexrelid AND con.conrelid = was.oid AND con.contype IN ('p', 'u', 'x')
        WHERE i.indrelid = was.oid ORDER BY i.indexrelid
    LOOP
        IF owned.indisprimary THEN
            indexes := indexes || format('ALTER TABLE messages ADD CONSTRAINT messages_key %s', owned.condef);
            CONTINUE;
        END IF;
        CONTINUE WHEN NOT owned.general; -- a unique one without seq: each partition has its own
        before := before || format('ALTER INDEX %s RENAME TO %I', owned.name, left('messages_from_0_' || regexp_replace(owned.relname, '^messages_', ''), 63));
        indexes := indexes || CASE WHEN owned.conname IS NULL THEN owned.definition
            ELSE format('ALTER TABLE messages ADD CONSTRAINT %I %s', owned.conname, owned.condef) END;
        IF owned.description IS NOT NULL THEN
            indexes := indexes || format('COMMENT ON INDEX %I.%I IS %L', namespace, owned.relname, owned.description);
        END IF;
    END LOOP;
    FOR owned IN SELECT tgname, tgenabled, pg_get_triggerdef(oid) AS definition FROM pg_trigger WHERE tgrelid = was.oid AND NOT tgisinternal ORDER BY oid LOOP
        before := before || format('DROP TRIGGER %I ON messages', owned.tgname);
        after := after || owned.definition;
        IF owned.tgenabled <> 'O' THEN
            after := after || format('ALTER TABLE messages %s TRIGGER %I', CASE owned.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, owned.tgname);
        END IF;
    END LOOP;
    FOR owned IN SELECT conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint WHERE conrelid = was.oid AND contype = 'f' ORDER BY oid LOOP
        indexes := indexes || format('ALTER TABLE messages ADD CONSTRAINT %I %s', owned.conname, owned.definition);
    END LOOP;
    FOR owned IN
        SELECT DISTINCT c.oid, c.oid::regclass AS name, pg_get_viewdef(c.oid) AS definition, array_to_string(c.reloptions, ', ') AS options
        FROM pg_depend d
        JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
        JOIN pg_class c ON c.oid = r.ev_class
        WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = was.oid
            AND c.relkind = 'v' AND NOT pg_is_other_temp_schema(c.relnamespace) ORDER BY 1
    LOOP
        after := after || format('CREATE OR REPLACE VIEW %s %s AS %s', owned.name, 'WITH (' || owned.options || ')', owned.definition);
    END LOOP;
    FOR owned IN -- sequences of serial columns
        SELECT d.objid::regclass AS sequence, a.attname FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = was.oid AND d.deptype = 'a'
            AND EXISTS (SELECT FROM pg_class WHERE oid = d.objid AND relkind = 'S')
    LOOP
        after := after || format('ALTER SEQUENCE %s OWNED BY %I.messages.%I', owned.sequence, namespace, owned.attname);
    END LOOP;
    FOR owned IN SELECT attname, attidentity FROM pg_attribute WHERE attrelid = was.oid AND attidentity <> '' AND NOT attisdropped LOOP
        EXECUTE format('SELECT last_value, is_called FROM %s', pg_get_serial_sequence('messages', owned.attname)) INTO last_value, is_called;
        before := before || format('ALTER TABLE messages ALTER %I DROP IDENTITY', owned.attname);
        after := after || format('ALTER TABLE messages ALTER %I ADD GENERATED %s AS IDENTITY', owned.attname, CASE owned.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END)
            || format('SELECT setval(pg_get_serial_sequence(%L, %L), %s, %L)', format('%I.messages', namespace), owned.attname, last_value, is_called);
    END LOOP;
    FOR owned IN
        SELECT a.privilege_type, a.is_grantable, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee, NULL::name AS attname
        FROM aclexplode(was.relacl) a WHERE a.grantee <> was.relowner
        UNION ALL
        SELECT a.privilege_type, a.is_grantable, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END, c.attname
        FROM pg_attribute c, aclexplode(c.attacl) a WHERE c.attrelid = was.oid AND NOT c.attisdropped AND a.grantee <> was.relowner
    LOOP
        after := after || format('GRANT %s%s ON messages TO %s%s', owned.privilege_type, ' (' || quote_ident(owned.attname) || ')', owned.grantee,
            CASE WHEN owned.is_grantable THEN ' WITH GRANT OPTION' END);
    END LOOP;
    after := after || format('COMMENT ON TABLE messages IS %L', obj_description(was.oid, 'pg_class'));

    FOR owned IN SELECT unnest(before) AS statement LOOP
        EXECUTE owned.statement;
    END LOOP;
    EXECUTE 'ALTER TABLE messages RENAME TO messages_from_0';
    EXECUTE format('CREATE TABLE %I.messages (LIKE %s INCLUDING ALL EXCLUDING INDEXES EXCLUDING IDENTITY) PARTITION BY RANGE (seq)', namespace, old);
    EXECUTE format('ALTER TABLE messages OWNER TO %I', pg_get_userbyid(was.relowner));
    FOR owned IN SELECT conname FROM pg_constraint WHERE conrelid = was.oid AND contype = 'c' AND (NOT convalidated OR conname LIKE 'messages\_until\_%') LOOP
        EXECUTE format('ALTER TABLE messages DROP CONSTRAINT %I', owned.conname); -- LIKE has copied it
    END LOOP;
    FOR owned IN SELECT unnest(indexes) AS statement LOOP
        EXECUTE owned.statement;
    END LOOP;
    EXECUTE format('ALTER TABLE messages ATTACH PARTITION %s FOR VALUES FROM (0) TO (%s)', old, bound);
    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT messages_until_%s', old, bound);
    FOR owned IN SELECT unnest(after) AS statement LOOP
        EXECUTE owned.statement;
    END LOOP;
    PERFORM archive_add_partition(bound, bound + 16777216);
    PERFORM archive_add_partition(bound + 16777216, bound + 33554432);
END $$;
-- +goose StatementEnd

DROP FUNCTION archive_obstacles;

INSERT INTO archive_position (seq) SELECT coalesce(max(seq), 0) FROM messages;

COMMENT ON TABLE messages IS 'Every chat message that the broker has acknowledged, once. Written by mynah archiver; yours to read and join. Partitioned by seq, see view archive_partitions.';
