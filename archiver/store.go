package archiver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"mynah/internal/pgdial"
	"mynah/schema"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

const (
	// commitTimeout is how long PostgreSQL may take over a transaction before
	// the connection is given up. The batch is kept.
	commitTimeout = time.Minute
	// statementTimeout is the same on PostgreSQL's side, and lockTimeout how long it
	// waits there for somebody else's lock, unless somebody has decided otherwise. A
	// lock that is held for longer is waited for in attempts; an older session of ours
	// that has lost its archiver is ended, see endStuck.
	// idleTimeout is for a transaction in which nothing more comes.
	statementTimeout = "60s"
	lockTimeout      = "5s"
	idleTimeout      = "10s"
	// pingInterval is how often an idle archiver checks whether PostgreSQL
	// answers.
	pingInterval = 3 * time.Second
	// logInterval is how often the same failure is logged.
	logInterval = 30 * time.Second
	// stagedBatchesAfterDuplicate is the number of batches that use the staging table
	// after a duplicate, since more duplicates usually follow.
	stagedBatchesAfterDuplicate = 16

	stagingTable = "pg_temp.mynah_incoming"
	// application is the application_name of the archiver's session in
	// PostgreSQL.
	application = "mynah archiver"
)

var (
	columns     = strings.Join(schema.MessageColumns(), ", ")
	copyDirect  = "COPY messages (" + columns + ") FROM STDIN (FORMAT binary)"
	copyStaging = "COPY " + stagingTable + " (" + columns + ") FROM STDIN (FORMAT binary)"
	// Our columns and nothing else: the user may have added some of their own, with
	// defaults that LIKE would leave out.
	makeStaging = "CREATE TEMPORARY TABLE IF NOT EXISTS mynah_incoming ON COMMIT DELETE ROWS AS SELECT " + columns + " FROM messages WITH NO DATA"
	// In the order of seq, so that two archivers that store the same messages
	// wait for each other instead of meeting crosswise.
	fromStaging = "INSERT INTO messages (" + columns + ") SELECT " + columns + " FROM " + stagingTable + " ORDER BY seq ON CONFLICT (seq) DO NOTHING"

	// columnTypes are what appendRow renders.
	columnTypes = []uint32{
		pgtype.Int8OID, pgtype.TextOID, pgtype.TextOID, pgtype.TextOID,
		pgtype.TimestamptzOID, pgtype.TextOID, pgtype.TextOID, pgtype.JSONBOID,
	}
)

// store writes batches into PostgreSQL over one connection of its own, so that
// whoever else uses the database cannot exhaust it. It is used by one goroutine.
type store struct {
	address       string
	log           *slog.Logger
	stats         *stats
	conn          *pgx.Conn // nil while there is none
	stagedBatches int       // batches that still go through the staging table
	room          room

	lastLogged      time.Time // when a failure was logged
	lastLoggedError string    // and which
}

// commit stores batch after batch, each for as long as it takes, until in is
// closed or ctx ends.
func (r *run) commit(ctx context.Context, in <-chan *batch, out chan<- *batch) {
	s := &store{address: r.cfg.DatabaseURL, log: r.log, stats: r.stats}
	defer s.disconnect()
	// The first look is at once and not with the first message: the lag needs
	// the position, and what is wrong shall be seen at the start.
	s.pingWhenIdle(ctx)
	idle := time.NewTicker(pingInterval)
	defer idle.Stop()
	for {
		select {
		case b, ok := <-in:
			if !ok || !s.store(ctx, b) {
				return
			}
			out <- b
		case <-idle.C:
			s.pingWhenIdle(ctx)
		}
	}
}

// pingWhenIdle checks whether PostgreSQL answers, while there is nothing to store.
func (s *store) pingWhenIdle(ctx context.Context) {
	err := s.connect(ctx)
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		err = pgdial.CheckWritable(limited, s.conn)
	}
	if err != nil && ctx.Err() == nil {
		s.failed(ctx, err)
	}
}

// store stores a batch and reports whether it is: not if ctx has ended.
func (s *store) store(ctx context.Context, b *batch) bool {
	began := time.Now()
	s.stats.batchHandedOver(b.items[0].ts)
	var pause backoff
	for {
		err := s.storeBatch(ctx, b)
		if err == nil {
			s.stats.batchCommitted(len(b.items), b.last, began)
			return true
		}
		if ctx.Err() == nil {
			s.failed(ctx, err)
		}
		if !pause.wait(ctx) {
			return false // given up, and not acknowledged
		}
	}
}

// failed closes the connection, whatever the error: the next one may lead to a
// healthy server.
func (s *store) failed(ctx context.Context, err error) {
	s.stats.databaseAway()
	if s.conn != nil && isLocked(err) {
		s.endStuckSessions(ctx, s.conn)
	}
	s.disconnect()
	if time.Since(s.lastLogged) < logInterval && err.Error() == s.lastLoggedError {
		return
	}
	s.lastLogged, s.lastLoggedError = time.Now(), err.Error()
	attrs := []any{"error", err}
	if advice := hint(err); advice != "" {
		attrs = append(attrs, "advice", advice)
	}
	s.log.WarnContext(ctx, "PostgreSQL does not take messages; keeping them and trying again", attrs...)
}

func (s *store) disconnect() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx) // nothing is pending on it that anybody waits for
	s.conn = nil
}

// connect makes a connection if there is none and checks the table.
func (s *store) connect(ctx context.Context) error {
	if s.conn != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	config, err := pgdial.Parse(s.address, application)
	if err != nil {
		return fmt.Errorf("read the database address: %w", err)
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	if err := s.prepare(ctx, conn); err != nil {
		if isLocked(err) { // behind somebody who wants to change the table and waits as well
			s.endStuckSessions(ctx, conn)
		}
		return errors.Join(err, conn.Close(ctx))
	}
	s.conn = conn
	return nil
}

func (s *store) prepare(ctx context.Context, conn *pgx.Conn) error {
	// PostgreSQL must not go on with what this side has given up, nor wait for ever.
	if err := pgdial.SetDefaultLimits(ctx, conn, map[string]string{
		"statement_timeout": statementTimeout, "lock_timeout": lockTimeout, "idle_in_transaction_session_timeout": idleTimeout,
	}); err != nil {
		return fmt.Errorf("limit the session: %w", err)
	}
	// A wrong column type must not turn every message into a dead letter.
	table, err := conn.Prepare(ctx, "", "SELECT "+columns+" FROM messages")
	if err != nil {
		return fmt.Errorf("look at table messages: %w", err)
	}
	for i, field := range table.Fields {
		if field.DataTypeOID != columnTypes[i] {
			return fmt.Errorf("column messages.%s is not of the type that the migrations gave it", field.Name)
		}
	}
	// A commit that is only in memory is none: the broker may forget the
	// message as soon as it is acknowledged.
	if _, err := conn.Exec(ctx, `SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'`); err != nil {
		return fmt.Errorf("set synchronous_commit: %w", err)
	}
	var last int64
	if err := conn.QueryRow(ctx, schema.SelectLastSeq).Scan(&last); err != nil {
		return fmt.Errorf("read the archive's position: %w", err)
	}
	s.stats.setCommitted(uint64(max(0, last)))
	s.room = room{}
	return nil
}

// endStuckSessions ends older sessions of archivers with our role and application name that have
// had a write lock on the table for longer than lockTimeout and wait for their client: an
// archiver whose connection was lost in the middle of a batch, which PostgreSQL has not
// noticed. Its rows keep ours waiting, and with them whoever wants to change the table. To
// end that of an archiver that lives costs it an attempt.
func (s *store) endStuckSessions(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	rows, err := conn.Query(ctx, schema.EndStuckArchivers, lockTimeout)
	if err == nil {
		var ended []string
		if ended, err = pgx.CollectRows(rows, pgx.RowTo[string]); len(ended) > 0 {
			s.log.WarnContext(ctx, "ended sessions of an archiver that kept messages locked and waited for a client that is gone", "sessions", ended)
		}
	}
	if err != nil {
		s.log.WarnContext(ctx, "cannot end sessions of an archiver that may keep messages locked", "error", err)
	}
}

// storeBatch makes every message of the batch a row or a dead letter. After an
// error some may be stored and some not; to store the batch again is harmless.
func (s *store) storeBatch(ctx context.Context, b *batch) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	if err := s.storeItems(ctx, b, b.items); err != nil {
		return err
	}
	if b.last > 0 {
		s.lookAhead(ctx, int64(b.last)) //nolint:gosec // ParseEnvelope allows 2^53-1 at most
	}
	for i := range b.items {
		if it := &b.items[i]; it.refused != nil {
			if err := s.storeDeadLetter(ctx, it, it.refused); err != nil {
				return err
			}
		}
	}
	if s.stagedBatches > 0 {
		s.stagedBatches--
	}
	return nil
}

// storeItems stores consecutive messages in one transaction. If PostgreSQL refuses
// their content, it halves them until the refused message is alone.
func (s *store) storeItems(ctx context.Context, b *batch, items []item) error {
	rows := b.buf[items[0].from:items[len(items)-1].to]
	if len(rows) == 0 {
		return nil
	}
	err := s.commitRows(ctx, items, rows)
	if isNoRoom(err) {
		if err = s.makeRoom(ctx, items, err); err == nil {
			err = s.commitRows(ctx, items, rows)
		}
	}
	if err == nil || !isDataRefusal(err) {
		return err
	}
	if len(items) == 1 {
		return s.storeDeadLetter(ctx, &items[0], err)
	}
	half := len(items) / 2
	if err := s.storeItems(ctx, b, items[:half]); err != nil {
		return err
	}
	return s.storeItems(ctx, b, items[half:])
}

// makeRoom makes partitions for the messages, which PostgreSQL has refused with that
// error.
func (s *store) makeRoom(ctx context.Context, items []item, refused error) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	if err := makeRoom(ctx, s.conn, seqsOf(items)); err != nil {
		return fmt.Errorf("make room for messages: %w (%w)", err, refused)
	}
	return nil
}

// commitRows commits the rows of the messages and the archive's position. In most cases none
// of them is there yet and they are copied straight into the table; a duplicate is known
// only from PostgreSQL's refusal.
func (s *store) commitRows(ctx context.Context, items []item, rows []byte) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	seqs := seqsOf(items)
	position := fmt.Sprintf(schema.AdvancePosition, slices.Max(seqs))
	if s.stagedBatches == 0 {
		// Both in one message, which PostgreSQL takes for one transaction.
		_, err := s.conn.PgConn().CopyFrom(ctx, copyReader(rows), copyDirect+"; "+position)
		if err == nil {
			s.stats.stored.Add(float64(len(seqs)))
			return nil
		}
		if !isDuplicate(err) {
			return fmt.Errorf("copy messages: %w", err)
		}
		s.stagedBatches = stagedBatchesAfterDuplicate
	}
	tx, err := s.conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // does nothing after a commit
	if _, err := tx.Exec(ctx, makeStaging); err != nil {
		return fmt.Errorf("make the staging table: %w", err)
	}
	copied, err := s.conn.PgConn().CopyFrom(ctx, copyReader(rows), copyStaging)
	if err != nil {
		return fmt.Errorf("copy messages to the staging table: %w", err)
	}
	inserted, err := tx.Exec(ctx, fromStaging)
	if err != nil {
		return fmt.Errorf("insert messages: %w", err)
	}
	if _, err := tx.Exec(ctx, position); err != nil {
		return fmt.Errorf("advance the archive's position: %w", err)
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	s.stats.stored.Add(float64(inserted.RowsAffected()))
	s.stats.duplicates.Add(float64(copied.RowsAffected() - inserted.RowsAffected()))
	if inserted.RowsAffected() < copied.RowsAffected() {
		s.stagedBatches = stagedBatchesAfterDuplicate
	}
	return nil
}

func copyReader(rows []byte) io.Reader {
	return io.MultiReader(bytes.NewReader(copyHeader), bytes.NewReader(rows), bytes.NewReader(copyTrailer))
}

// storeDeadLetter stores a message in table dead_letters.
func (s *store) storeDeadLetter(ctx context.Context, it *item, reason error) error {
	var seq *uint64
	if it.seq != 0 {
		seq = &it.seq
	}
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	topic := strings.ToValidUTF8(it.message.Topic(), "\uFFFD")
	_, err := s.conn.Exec(ctx, schema.InsertDeadLetter, seq, topic, it.message.Payload(), reason.Error(), sqlstate(reason))
	if err != nil {
		return fmt.Errorf("store a dead letter: %w", err)
	}
	s.stats.dead.Inc()
	s.log.ErrorContext(ctx, "a message could not be stored and is in dead_letters", "topic", topic, "seq", it.seq, "reason", reason)
	return nil
}
