// Package outreach publishes the notices of the outbox (table outbox, written in the
// transactions of packages people and groups) over MQTT, so that they are messages in the log
// like all others.
//
// What it guarantees:
//
//   - A notice whose transaction was committed is in the log exactly once: it is
//     deleted from the outbox only after the broker has acknowledged it, and what
//     is published again after a crash has the same mid, by which the broker
//     knows it.
//   - Notices of one group, and of one person, come in the order of the changes
//     that they are about.
//   - Several relays on one database take turns: one publishes, the others wait to
//     take its place (a session-level advisory lock).
//   - Without the broker or without PostgreSQL notices wait, and nothing else does.
//   - The members of a dissolved group are removed when the notice about it is in
//     the log, not before: else nobody would get it.
package outreach

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mynah/authhook"
	"mynah/internal/pgdial"
	"mynah/schema"
)

// Subject is who notices come from: the subject that the relay's token must have.
const Subject = authhook.SubjectSystem

// lockID is the advisory lock of the relay that publishes ("notice" in ASCII).
const lockID = 0x6e6f74696365

// applicationName is what PostgreSQL shows of the relay's session.
const applicationName = "mynah notices"

// outboxChannel is notified after each transaction that wrote a notice.
const outboxChannel = "mynah_outbox"

const (
	// publishDelay is how long a notice waits after its transaction. Brokers learn of a
	// new member from the same transaction; without it the notice that they have
	// joined would often be in the log before they receive the group.
	publishDelay = 50 * time.Millisecond
	batchSize    = 200
	pollEvery    = 2 * time.Second
	ackTimeout   = 10 * time.Second
	writeTimeout = 2 * time.Second
	queryTimeout = 10 * time.Second
	pauseMin     = 100 * time.Millisecond
	pauseMax     = 2 * time.Second
	// maxChunk is how many members of a dissolved group are removed at once, a tenth
	// of a second in which no notice goes out; fewer where that takes longer than
	// chunkTimeout.
	maxChunk     = 2000
	chunkTimeout = "1s"
	// silenceTimeout is after how much silence PostgreSQL ends the session, and with it
	// gives the lock back, also where a proxy acknowledges for a relay that is gone. The
	// relay asks something every pollEvery, and while it waits for the broker, which it
	// does for at most ackTimeout at once, when pingEvery has passed.
	silenceTimeout = "20s"
	pingEvery      = 5 * time.Second
	// logHolderAfter is how long the relay waits for its turn before it says for whom.
	logHolderAfter = time.Second
	lockAskEvery   = 500 * time.Millisecond
)

// Config is what a Relay needs.
type Config struct {
	// DatabaseURL is the address of PostgreSQL. Required.
	DatabaseURL string
	// BrokerURL is the broker: tcp://host:port and what paho knows besides. Required.
	BrokerURL string
	// TLS is used for mqtts, ssl, tls and wss. Nil means Go's defaults.
	TLS *tls.Config
	// Token returns a token of role service whose subject is Subject. It is
	// asked for each connection. Required.
	Token func(ctx context.Context) (string, error)
	// ClientID is the MQTT client id; default "notices". Relays that take turns
	// may have the same: only the one that publishes is connected.
	ClientID string
	Logger   *slog.Logger // default: nobody
}

// Relay publishes notices. Make it with New.
type Relay struct {
	cfg Config
	log *slog.Logger

	mu     sync.Mutex // guards what follows
	cancel context.CancelFunc
	done   chan struct{}
}

// New returns a Relay. It does nothing yet: Start does.
func New(cfg Config) (*Relay, error) {
	if _, err := pgdial.Parse(cfg.DatabaseURL, applicationName); err != nil {
		return nil, errors.New("outreach: the database's address cannot be understood") // the parser's error may quote the password
	}
	if cfg.BrokerURL == "" || cfg.Token == nil {
		return nil, errors.New("outreach: BrokerURL and Token are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.ClientID == "" {
		cfg.ClientID = "notices"
	}
	return &Relay{cfg: cfg, log: cfg.Logger}, nil
}

// Start begins to publish. Neither the broker nor PostgreSQL need be there. To
// start what is started does nothing.
func (r *Relay) Start(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cancel != nil {
		return nil
	}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r.cancel, r.done = cancel, make(chan struct{})
	go r.run(background, r.done)
	return nil
}

// Stop ends publishing and waits for that, at most until ctx ends. What is not published
// waits in the outbox. To stop what is stopped does nothing; after a Stop that gave up,
// another one waits again.
func (r *Relay) Stop(ctx context.Context) error {
	r.mu.Lock()
	if r.cancel != nil {
		r.cancel()
		r.cancel = nil
	}
	done := r.done
	r.mu.Unlock() // not held while Stop waits: another Stop has a context of its own
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("outreach: stop: gave up on waiting for a notice that is being published: %w", ctx.Err())
	}
}

// run takes turns until ctx ends.
func (r *Relay) run(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	pause, last := pauseMin, ""
	for ctx.Err() == nil {
		began := time.Now()
		err := r.publishUntilFailure(ctx)
		if ctx.Err() != nil {
			return
		}
		if err.Error() != last { // the same failure is logged once
			r.log.WarnContext(ctx, "notices wait; trying again", "error", err)
			last = err.Error()
		}
		if time.Since(began) > 10*time.Second {
			pause, last = pauseMin, ""
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause)): //nolint:gosec // jitter need not be secret
		}
		pause = min(2*pause, pauseMax)
	}
}

// publishUntilFailure waits for the lock, connects to the broker and publishes until something
// fails.
func (r *Relay) publishUntilFailure(ctx context.Context) error {
	conn, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing) // which gives the lock back
	}()
	if err := r.takeLock(ctx, conn); err != nil {
		return err
	}
	client, lost, err := r.dial(ctx, conn)
	if err != nil {
		return err
	}
	defer client.Disconnect(250)
	if _, err := conn.Exec(ctx, "LISTEN "+outboxChannel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	chunk := maxChunk
	for {
		more, err := r.publishBatch(ctx, conn, client, lost)
		if err != nil {
			return err
		}
		left, err := r.removeDissolvedMembers(ctx, conn, &chunk)
		if err != nil {
			return err
		}
		if more || left {
			continue
		}
		waiting, cancel := context.WithTimeout(ctx, pollEvery)
		_, err = conn.WaitForNotification(waiting)
		idle := waiting.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case idle:
		case err != nil:
			return fmt.Errorf("wait for notices: %w", err)
		default:
			select {
			case <-ctx.Done():
			case <-time.After(publishDelay):
			}
		}
		select {
		case err := <-lost:
			return fmt.Errorf("connection to the broker lost: %w", err)
		default:
		}
	}
}

func (r *Relay) connect(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	config, err := pgdial.Parse(r.cfg.DatabaseURL, applicationName)
	if err != nil {
		return nil, errors.New("the database's address cannot be understood") // New has read it
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	if err := pgdial.SetDefaultLimits(ctx, conn, map[string]string{
		"idle_session_timeout": silenceTimeout, "idle_in_transaction_session_timeout": silenceTimeout,
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("limit the session's silence: %w", err), conn.Close(ctx))
	}
	return conn, nil
}

// takeLock waits until it is this relay's turn, and says for whom if that takes its time. It
// asks again and again instead of waiting in PostgreSQL, which would show as a query that
// hangs.
func (r *Relay) takeLock(ctx context.Context, conn *pgx.Conn) error {
	logAt := time.Now().Add(logHolderAfter)
	holder := ""
	for {
		var mine bool
		asking, cancel := context.WithTimeout(ctx, queryTimeout)
		err := conn.QueryRow(asking, `SELECT pg_try_advisory_lock($1)`, int64(lockID)).Scan(&mine)
		cancel()
		if err != nil {
			return fmt.Errorf("take the relay's lock: %w", err)
		}
		if mine {
			return nil
		}
		if !time.Now().Before(logAt) {
			holder, logAt = r.logHolder(ctx, conn, holder), time.Now().Add(logHolderAfter)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockAskEvery):
		}
	}
}

// logHolder logs which session has the lock, if it is not the one that was logged last,
// and returns it. Where several APIs run that is what all but one of them say; where one
// runs it is a session that PostgreSQL has not given up yet.
func (r *Relay) logHolder(ctx context.Context, conn *pgx.Conn, logged string) string {
	asking, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var holder string
	if err := conn.QueryRow(asking, pgdial.SelectLockHolder, int64(lockID)).Scan(&holder); err != nil {
		return logged // nobody has it any more, or lock sees what is wrong
	}
	// What it does changes all the time; who it is does not.
	who, _, _ := strings.Cut(holder, ", connected since")
	if who != logged {
		r.log.InfoContext(ctx, "another session publishes the notices; waiting to take its place", "holder", holder)
	}
	return who
}

// dial connects to the broker, and shows PostgreSQL meanwhile that the relay is there.
// paho's own reconnecting and store are off: what is
// not acknowledged is in the outbox.
func (r *Relay) dial(ctx context.Context, conn *pgx.Conn) (mqtt.Client, <-chan error, error) {
	token, err := r.cfg.Token(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("get a token: %w", err)
	}
	lost := make(chan error, 1)
	options := mqtt.NewClientOptions().AddBroker(r.cfg.BrokerURL).SetProtocolVersion(4).
		SetClientID(r.cfg.ClientID).SetUsername(r.cfg.ClientID).SetPassword(token).
		SetCleanSession(true).SetAutoReconnect(false).SetConnectRetry(false).
		SetConnectTimeout(ackTimeout).SetWriteTimeout(writeTimeout).SetOrderMatters(true).
		SetConnectionLostHandler(func(_ mqtt.Client, err error) {
			select {
			case lost <- err:
			default:
			}
		})
	if r.cfg.TLS != nil {
		options.SetTLSConfig(r.cfg.TLS)
	}
	client := mqtt.NewClient(options)
	if err := waitToken(ctx, client.Connect()); err != nil {
		if _, untrusted := errors.AsType[*tls.CertificateVerificationError](err); untrusted {
			err = fmt.Errorf("%w (see that --broker-ca has the authority of the broker's certificate, and that the certificate is for the host in --broker-url)", err)
		}
		if errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword) || errors.Is(err, packets.ErrorRefusedNotAuthorised) {
			err = fmt.Errorf("%w: the broker refuses the token (see that it is one that the broker accepts, of role service with sub %s: --jwt-secret must be the broker's, --token-file not expired)", err, Subject)
		}
		return nil, nil, fmt.Errorf("connect to the broker: %w", err)
	}
	if err := r.ping(ctx, conn); err != nil {
		client.Disconnect(0)
		return nil, nil, err
	}
	// With MQTT 3.1.1 this is how a refusal arrives.
	refusals := client.Subscribe("user/"+Subject+"/error", 0, func(_ mqtt.Client, m mqtt.Message) {
		r.log.Error("the broker refuses a notice; it is dropped", "refusal", string(m.Payload()))
	})
	if err := waitToken(ctx, refusals); err != nil {
		client.Disconnect(0)
		return nil, nil, fmt.Errorf("subscribe to refusals: %w", err)
	}
	return client, lost, nil
}

// waitToken waits for paho.
func waitToken(ctx context.Context, t mqtt.Token) error {
	timer := time.NewTimer(ackTimeout)
	defer timer.Stop()
	select {
	case <-t.Done():
		return t.Error()
	case <-timer.C:
		return errors.New("the broker does not answer in time")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// notice is a notice in the outbox.
type notice struct {
	ID                     int64
	Mid, Topic, Type, Body string
}

// payload renders the notice. The same row gives the same bytes, or the broker
// would take a second publish for another message.
func (n *notice) payload() ([]byte, error) {
	return json.Marshal(struct {
		Type string          `json:"type"`
		Mid  string          `json:"mid"`
		Body json.RawMessage `json:"body"`
	}{n.Type, n.Mid, json.RawMessage(n.Body)})
}

// publishBatch publishes what is in the outbox, up to batchSize, and deletes it once all
// of it is acknowledged. more says that there may be more.
func (r *Relay) publishBatch(ctx context.Context, conn *pgx.Conn, client mqtt.Client, lost <-chan error) (more bool, err error) {
	reading, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	rows, err := conn.Query(reading, schema.SelectOutbox, batchSize)
	if err != nil {
		return false, fmt.Errorf("read notices: %w", err)
	}
	notices, err := pgx.CollectRows(rows, pgx.RowToStructByPos[notice])
	if err != nil {
		return false, fmt.Errorf("read notices: %w", err)
	}
	tokens := make([]mqtt.Token, 0, len(notices))
	var failed error
	for i := range notices {
		payload, err := notices[i].payload()
		if err != nil {
			return false, fmt.Errorf("render notice %d: %w", notices[i].ID, err)
		}
		// With the connection gone paho waits for writeTimeout in each Publish.
		if !client.IsConnectionOpen() {
			failed = errors.New("connection to the broker lost")
			break
		}
		tokens = append(tokens, client.Publish(notices[i].Topic, 1, false, payload))
	}
	// All that come before the first failure are in the log.
	ids := make([]int64, 0, len(notices))
	asked := time.Now()
	for i, t := range tokens {
		if time.Since(asked) > pingEvery {
			if err := r.ping(ctx, conn); err != nil {
				return false, errors.Join(failed, err)
			}
			asked = time.Now()
		}
		if err := waitAck(ctx, t, lost); err != nil {
			failed = err
			break
		}
		ids = append(ids, notices[i].ID)
	}
	if len(ids) > 0 {
		if err := r.deletePublished(ctx, conn, ids); err != nil {
			return false, errors.Join(failed, err)
		}
	}
	return failed == nil && len(notices) == batchSize, failed
}

// waitAck waits for PUBACK.
func waitAck(ctx context.Context, t mqtt.Token, lost <-chan error) error {
	select {
	case err := <-lost:
		return fmt.Errorf("connection to the broker lost: %w", err)
	default:
	}
	if err := waitToken(ctx, t); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

// ping shows PostgreSQL that the relay is there.
func (r *Relay) ping(ctx context.Context, conn *pgx.Conn) error {
	asking, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	if err := conn.Ping(asking); err != nil {
		return fmt.Errorf("ask the database whether it is there: %w", err)
	}
	return nil
}

// deletePublished deletes published notices, although ctx may have ended meanwhile.
func (r *Relay) deletePublished(ctx context.Context, conn *pgx.Conn, ids []int64) error {
	deleting, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTimeout)
	defer cancel()
	if _, err := conn.Exec(deleting, schema.DeleteOutbox, ids); err != nil {
		return fmt.Errorf("delete published notices: %w", err)
	}
	return nil
}

// removeDissolvedMembers removes some of the members of groups that are dissolved, who have
// been notified: at most *chunk, which becomes less if PostgreSQL takes too long over them.
// left says that there may be more. It is done in chunks, and between batches, so that a
// group of any size holds up nobody's notices.
func (r *Relay) removeDissolvedMembers(ctx context.Context, conn *pgx.Conn, chunk *int) (left bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var removed int64
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL statement_timeout = '"+chunkTimeout+"'"); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, schema.DeleteDissolvedMembers, *chunk)
		removed = tag.RowsAffected()
		return err
	})
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == queryCanceled {
		*chunk = max(*chunk/4, 1)
		return false, nil // not at once: the server is busy
	}
	if err != nil {
		return false, fmt.Errorf("remove the members of dissolved groups: %w", err)
	}
	*chunk = min(*chunk+*chunk/4+1, maxChunk)
	return removed > 0, nil
}

// queryCanceled is PostgreSQL's code for a statement that took too long.
const queryCanceled = "57014"
