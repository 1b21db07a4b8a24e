package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"

	"mynah/authhook"
	"mynah/broker/delivery"
	"mynah/broker/listener"
	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/presence"
	"mynah/broker/pubsub"
	"mynah/broker/session"
	"mynah/broker/state"
	"mynah/chat"
	"mynah/internal/loglimit"
)

// Config is what a Broker needs. A zero field means its default.
type Config struct {
	// DataDir is the folder that holds the message log, in its folder log.
	// Required.
	DataDir string
	// MQTTAddr is where MQTT is spoken over TCP, "" for nowhere.
	MQTTAddr string
	// MQTTSAddr is where MQTT is spoken over TLS, "" for nowhere; it needs
	// TLSCert and TLSKey, the names of PEM files.
	MQTTSAddr       string
	TLSCert, TLSKey string

	Verifier  *authhook.Verifier // required
	Directory authhook.Directory // default: without a database
	Limiter   *authhook.Limiter  // default: limits nothing

	// ProxyProtocol expects a PROXY header on MQTT connections from
	// TrustedProxies, whose X-Forwarded-For is believed too.
	ProxyProtocol  bool
	TrustedProxies []netip.Prefix
	// ForwardedHeader is where they tell a WebSocket's address: X-Forwarded-For
	// (the default) or Forwarded.
	ForwardedHeader string
	// AllowedOrigins are the web pages that may connect: see listener.WSConfig.
	AllowedOrigins []string
	// MaxConns bounds open connections, MaxConnsPerAddr those from one address;
	// 0 for no bound.
	MaxConns, MaxConnsPerAddr int
	// Descriptors bounds the connections of these listeners and of others of the
	// process together; default: not at all. Without a bound, connections can take
	// the descriptors that the message log cannot go on without.
	Descriptors *listener.Descriptors
	// FirstPacketTimeout is how long a connection may take to send CONNECT;
	// default 10 s.
	FirstPacketTimeout time.Duration

	Limits    chat.Limits
	Retention msglog.Retention // zero keeps everything
	NoArchive bool             // no archiver is to come: Retention alone decides
	Log       msglog.Options   // Logger and OnFailure are set by the broker
	// OpenLog opens the message log in a folder, and the store beside it that ends with
	// it; default: a log of this machine alone.
	OpenLog func(dir string, opts msglog.Options) (msglog.Log, state.Store, error)

	// SessionExpiry is how long a 3.1.1 session without clean session outlives
	// its connection, and bounds what an MQTT 5 client may ask for; default
	// DefaultSessionExpiry.
	SessionExpiry time.Duration
	// MaxSessions is how many sessions a subject keeps, of which the one that has been
	// offline for longest gives way; default delivery.DefaultMaxSessions.
	// MaxSubscriptions is how many subscriptions a session may have; default
	// DefaultMaxSubscriptions.
	MaxSessions, MaxSubscriptions int
	// MaxWildcards is how many different filters with wildcards outside the chat a subject
	// may have in all its sessions; see pubsub.Config. Default pubsub.DefaultMaxWildcards.
	MaxWildcards int
	// Window is how many messages a session may have unacknowledged; default
	// delivery.DefaultWindow. Outbox is how many bytes may wait on one connection;
	// default outbox.DefaultPerConn. OutboxTotal bounds them all together; default
	// outbox.DefaultTotal.
	Window      int
	Outbox      int
	OutboxTotal int64
	// QueuedMessages and QueuedBytes bound what a session may have waiting or
	// unacknowledged of topics outside the chat, QueuedTotal the bytes of all sessions;
	// the defaults are delivery's.
	QueuedMessages, QueuedBytes int
	QueuedTotal                 int64
	// RetainedBytes bounds the memory of all retained messages together; default
	// pubsub.DefaultRetainedBytes.
	RetainedBytes int64
	// PresenceSettle is how long somebody stays online without a connection;
	// default DefaultPresenceSettle, negative for not at all.
	PresenceSettle time.Duration
	// PingInterval is how often the server pings WebSockets; default
	// listener.DefaultPingInterval, negative for never.
	PingInterval time.Duration

	// SystemInterval is how often the figures on $SYS/broker are told; default
	// DefaultSystemInterval.
	SystemInterval time.Duration

	Version  string                // of the program, told on $SYS/broker/version; default "unknown"
	Logger   *slog.Logger          // default: nobody
	Registry prometheus.Registerer // default: none
}

// Defaults of Config.
const (
	DefaultSessionExpiry    = 7 * 24 * time.Hour
	DefaultMaxSubscriptions = 1000
	DefaultPresenceSettle   = 5 * time.Second
	DefaultSystemInterval   = 30 * time.Second
)

// Broker is the MQTT server: it puts its parts together, starts and stops them.
type Broker struct {
	cfg    Config
	logger *slog.Logger

	log      msglog.Log
	state    state.Store
	engine   *delivery.Engine
	topics   *pubsub.Topics
	presence *presence.Tracker
	auth     *authhook.Hook
	policy   *authhook.Policy
	metrics  *metrics

	listenerMetrics *listener.Metrics
	tcp             []*listener.TCP
	ws              *listener.WebSocket

	conns       *connections
	endpoint    *endpoint
	queue       *queue
	pipeline    *pipeline
	refusals    *refusals
	wills       *willPublisher
	memberships *memberships
	maintenance *maintenance

	ctx      context.Context // ends when the broker stops
	cancel   context.CancelFunc
	tasks    sync.WaitGroup
	failed   chan error
	stopping atomic.Bool
	unwatch  func() // stops watching the directory

	start, stop sync.Once
	startErr    error
	stopErr     error
}

// New opens the message log and puts the broker together. It serves nobody yet. Errors
// of the log are those of msglog.Open.
func New(cfg Config) (*Broker, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Version == "" {
		cfg.Version = "unknown"
	}
	if cfg.OpenLog == nil {
		cfg.OpenLog = openLocal
	}
	if cfg.SessionExpiry == 0 {
		cfg.SessionExpiry = DefaultSessionExpiry
	}
	if cfg.Limits.Payload == 0 {
		cfg.Limits.Payload = chat.DefaultPayload
	}
	if cfg.MaxSubscriptions == 0 {
		cfg.MaxSubscriptions = DefaultMaxSubscriptions
	}
	if cfg.SystemInterval <= 0 {
		cfg.SystemInterval = DefaultSystemInterval
	}
	if cfg.PresenceSettle == 0 {
		cfg.PresenceSettle = DefaultPresenceSettle
	}
	b := &Broker{
		cfg: cfg, logger: cfg.Logger, listenerMetrics: listener.NewMetrics(),
		policy: authhook.NewPolicy(cfg.Directory),
		failed: make(chan error, 1),
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	if err := b.open(); err != nil {
		b.cancel()
		return nil, errors.Join(err, b.closeLog())
	}
	return b, nil
}

// open makes everything that the log's content decides.
func (b *Broker) open() (err error) {
	opts := b.cfg.Log
	opts.Logger = b.logger
	opts.OnFailure = func(err error) {
		select {
		case b.failed <- fmt.Errorf("the message log has failed and the broker must be started again: %w", err):
		default:
		}
	}
	if b.log, b.state, err = b.openLog(filepath.Join(b.cfg.DataDir, "log"), opts); err != nil {
		return fmt.Errorf("open message log: %w", err)
	}
	if err := b.assemble(); err != nil {
		return err
	}
	return b.openListeners()
}

// assemble makes the parts, each with what it needs of the others.
func (b *Broker) assemble() (err error) {
	// Whatever is committed from here on is delivered; sessions read what was before.
	_, last := b.log.Bounds()
	feed, err := b.log.Follow(last)
	if err != nil {
		return fmt.Errorf("follow message log: %w", err)
	}
	maxPacket := b.cfg.Limits.Payload + packetOverhead
	mochi, err := b.embed(maxPacket)
	if err != nil {
		return err
	}
	b.queue = newQueue()
	b.conns = &connections{retire: b.queue.retire}
	devices := newDevices()
	system := &system{started: time.Now()}
	rights := &rights{ctx: b.ctx, auth: b.auth, policy: b.policy, lookups: b.cfg.Directory != nil}
	b.memberships = &memberships{rights: rights, conns: b.conns, logger: b.logger}
	subscriber := &subscriber{
		rights: rights, conns: b.conns, memberships: b.memberships, logger: b.logger,
		maxSubscriptions: b.cfg.MaxSubscriptions,
		refusalLog:       loglimit.New(filterRefusalsAtOnce, filterRefusalsEvery),
	}
	b.wills = &willPublisher{rights: rights, conns: b.conns}
	if b.presence, err = presence.New(presence.Config{
		Store: b.state, Logger: b.logger, Settle: max(b.cfg.PresenceSettle, 0),
		Notify: func(subject string) { b.topics.PublishPresence(subject) },
	}); err != nil {
		return fmt.Errorf("restore presence: %w", err)
	}
	limits := &outbox.Limits{PerConn: b.cfg.Outbox, Total: b.cfg.OutboxTotal}
	limits.SetDefaults()
	if b.topics, err = pubsub.New(pubsub.Config{
		Store: b.state, Logger: b.logger, Limits: limits, MayRead: subscriber.mayReceive, Presence: b.presence, RetainedBytes: b.cfg.RetainedBytes,
		Queues: pubsub.QueuesConfig{
			Messages: b.cfg.QueuedMessages, Bytes: b.cfg.QueuedBytes, Total: b.cfg.QueuedTotal, TooLarge: b.messageTooLarge,
		},
		MaxWildcards: b.cfg.MaxWildcards,
	}); err != nil {
		return fmt.Errorf("restore retained messages: %w", err)
	}
	b.engine, err = delivery.New(delivery.Config{
		Log: b.log, State: b.state, Logger: b.logger, MaxSessions: b.cfg.MaxSessions, Window: b.cfg.Window,
		Observer: b.topics, Limits: limits,
		OnEnd: func(k session.Key) { // with the session's locks held
			devices.over(k)
			b.wills.waiting.SessionEnded(k)
		},
	})
	if err != nil {
		return err
	}
	b.queue.audience = b.engine.Audience
	b.memberships.engine, subscriber.topics = b.engine, b.topics
	b.refusals = &refusals{engine: b.engine, waiting: make(chan refusalNotice, maxRefusalNotices)}
	b.endpoint = &endpoint{
		mochi: mochi, rights: rights, conns: b.conns, memberships: b.memberships, log: b.log, engine: b.engine,
		devices: devices, presence: b.presence, subscriber: subscriber, wills: b.wills, system: system, queue: b.queue,
		logger: b.logger, maxPacket: maxPacket, expiry: b.cfg.SessionExpiry, stopping: &b.stopping,
	}
	b.metrics = newMetrics(b.cfg.Registry, b)
	b.endpoint.publisher = &publisher{
		limits: b.cfg.Limits, limiter: b.cfg.Limiter, rights: rights, log: b.log, engine: b.engine, topics: b.topics,
		queue: b.queue, devices: devices, refusals: b.refusals, metrics: b.metrics, renew: subscriber.renew,
	}
	b.wills.publisher, b.wills.sessionExpiry = b.endpoint.publisher, b.endpoint.sessionExpiry
	b.pipeline = newPipeline(&pipeline{
		queue: b.queue, log: b.log, feed: feed, engine: b.engine, devices: devices, refusals: b.refusals,
		metrics: b.metrics, logger: b.logger,
	})
	b.maintenance = &maintenance{
		ctx: b.ctx, log: b.log, engine: b.engine, topics: b.topics, system: system, logger: b.logger,
		retention: b.cfg.Retention, noArchive: b.cfg.NoArchive, interval: b.cfg.SystemInterval, version: b.cfg.Version,
	}
	return nil
}

// openLog opens the log. On a disk that is full to the last byte Pebble may try for ever
// to write what it must before it is open; then the broker gives up.
func (b *Broker) openLog(dir string, opts msglog.Options) (msglog.Log, state.Store, error) {
	type result struct {
		log   msglog.Log
		state state.Store
		err   error
	}
	opened := make(chan result, 1)
	go func() {
		l, s, err := b.cfg.OpenLog(dir, opts)
		opened <- result{l, s, err}
	}()
	select {
	case r := <-opened:
		return r.log, r.state, r.err
	case err := <-b.failed:
		return nil, nil, err
	}
}

// openLocal opens a log of this machine alone.
func openLocal(dir string, opts msglog.Options) (msglog.Log, state.Store, error) {
	l, err := msglog.Open(dir, opts)
	if err != nil {
		return nil, nil, err
	}
	return l, l.State(), nil
}

// packetOverhead is how many bytes a packet may have beside its payload: the topic and
// properties.
const packetOverhead = 68 << 10

// embed sets Mochi up for packets of up to maxPacket bytes. What it does by default and
// should not is in MOCHI.md.
func (b *Broker) embed(maxPacket int) (mochi *mqtt.Server, err error) {
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumPacketSize = uint32(maxPacket) //nolint:gosec // some hundred KiB
	caps.MaximumSessionExpiryInterval = uint32(b.cfg.SessionExpiry / time.Second)
	caps.MaximumMessageExpiryInterval = 0 // by default it drops retained messages after a day
	caps.MaximumClientWritesPending = 0   // nothing goes that way
	caps.ReceiveMaximum = maxQueuedPerConn
	caps.TopicAliasMaximum = 0
	caps.Compatibilities.NoInheritedPropertiesOnAck = true
	mochi = mqtt.New(&mqtt.Options{
		Capabilities:             caps,
		Logger:                   slog.New(mochiHandler{b.logger.Handler()}),
		ClientNetReadBufferSize:  16, // we read ourselves
		ClientNetWriteBufferSize: 1,  // the outbox batches; what Mochi holds back it may forget to flush
	})
	b.auth, err = authhook.NewHook(authhook.HookConfig{
		Verifier: b.cfg.Verifier, Policy: b.policy, Limiter: b.cfg.Limiter, Log: b.logger,
	})
	if err != nil {
		return nil, err
	}
	if err := mochi.AddHook(b.auth, nil); err != nil {
		return nil, fmt.Errorf("add auth hook: %w", err)
	}
	return mochi, nil
}

// openListeners makes the listeners, which do not listen yet.
func (b *Broker) openListeners() error {
	guard := listener.Guard{
		Handler:            b.endpoint.serve,
		FirstPacketTimeout: b.cfg.FirstPacketTimeout,
		Limiter:            listener.NewLimiter(b.cfg.MaxConns, b.cfg.MaxConnsPerAddr),
		Metrics:            b.listenerMetrics,
		Logger:             b.logger,
	}
	if b.cfg.MQTTAddr != "" {
		t, err := listener.NewTCP(listener.TCPConfig{
			Guard: guard, Addr: b.cfg.MQTTAddr, Descriptors: b.cfg.Descriptors,
			ProxyProtocol: b.cfg.ProxyProtocol, TrustedProxies: b.cfg.TrustedProxies,
		})
		if err != nil {
			return err
		}
		b.tcp = append(b.tcp, t)
	}
	if b.cfg.MQTTSAddr != "" {
		certs, err := listener.NewCertReloader(b.cfg.TLSCert, b.cfg.TLSKey, b.logger)
		if err != nil {
			return err
		}
		t, err := listener.NewTCP(listener.TCPConfig{
			Guard: guard, Addr: b.cfg.MQTTSAddr, Descriptors: b.cfg.Descriptors, TLS: certs.TLSConfig(),
			ProxyProtocol: b.cfg.ProxyProtocol, TrustedProxies: b.cfg.TrustedProxies,
		})
		if err != nil {
			return err
		}
		b.tcp = append(b.tcp, t)
	}
	ws, err := listener.NewWebSocket(listener.WSConfig{
		Guard: guard, AllowedOrigins: b.cfg.AllowedOrigins, TrustedProxies: b.cfg.TrustedProxies, ForwardedHeader: b.cfg.ForwardedHeader,
		PingInterval: b.cfg.PingInterval,
		MessageLimit: max(listener.DefaultMessageLimit, 2*int64(b.endpoint.maxPacket)),
	})
	b.ws = ws
	return err
}

// Start begins to serve. It is harmless to repeat. ctx bounds the start only.
func (b *Broker) Start(ctx context.Context) error {
	b.start.Do(func() { b.startErr = b.startParts(ctx) })
	return b.startErr
}

func (b *Broker) startParts(ctx context.Context) error {
	// The pipeline from its end to its beginning, so that nothing waits for a part
	// that is not there; then the listeners.
	b.engine.Start()
	b.tasks.Go(b.refusals.run)
	b.tasks.Go(b.pipeline.commit)
	b.tasks.Go(b.pipeline.sequence)
	b.tasks.Go(b.maintenance.run)
	b.unwatch = b.policy.Directory().Watch(b.memberships.changed)
	for _, t := range b.tcp {
		if err := t.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends the broker in this order: no new connections; publishes that have arrived
// are committed and acknowledged; clients are told, with MQTT 5, that the server shuts
// down; connections end; positions are stored; the log is closed. It is harmless to
// repeat. When ctx ends before, connections are cut, and the error says what was not waited
// for any longer; what was acknowledged is on disk.
func (b *Broker) Stop(ctx context.Context) error {
	b.stop.Do(func() { b.stopErr = b.stopParts(ctx) })
	return b.stopErr
}

func (b *Broker) stopParts(ctx context.Context) error {
	started := true
	b.start.Do(func() { started = false; b.startErr = errors.New("the broker was stopped") })
	for _, t := range b.tcp {
		t.StopAccepting()
	}
	b.ws.StopAccepting()
	b.stopping.Store(true)

	// What may wait for the disk is done in order, on a goroutine of its own: what is left
	// when ctx ends still comes in that order, if the disk works again.
	var (
		last         lastSteps
		stored       = make(chan struct{}) // all that has arrived is
		disconnected = make(chan struct{}) // connections have ended, or been cut
		closed       = make(chan error, 1) // the log is
	)
	go func() {
		if b.unwatch != nil {
			b.unwatch()
		}
		last.begin("to publish the last wills")
		b.wills.fireLast()
		last.begin("to store and acknowledge what has arrived")
		b.queue.close()
		b.cancel()
		if started {
			b.tasks.Wait()
		}
		close(stored)
		<-disconnected
		last.begin("to store who was online")
		b.presence.Stop()
		b.topics.Stop()
		last.begin("to store the positions of sessions")
		b.engine.Stop()
		last.begin("to close the message log")
		closed <- errors.Join(b.auth.Stop(), b.closeLog())
	}()
	select {
	case <-stored:
	case <-ctx.Done():
	}
	b.cancel() // also if the wills are not through
	errs := []error{b.disconnect(ctx)}
	close(disconnected)
	select {
	case err := <-closed:
		errs = append(errs, err)
	case <-ctx.Done():
		errs = append(errs, fmt.Errorf("gave up on waiting for the broker %s: %w", last.now(), ctx.Err()))
	}
	return errors.Join(errs...)
}

// lastSteps notes what a broker that stops is about.
type lastSteps struct{ step atomic.Value }

func (l *lastSteps) begin(what string) { l.step.Store(what) }

func (l *lastSteps) now() string {
	what, _ := l.step.Load().(string)
	return what
}

// disconnect tells the clients that the server shuts down and ends their connections.
func (b *Broker) disconnect(ctx context.Context) error {
	shuttingDown := []byte{packets.Disconnect << 4, 2, packets.ErrServerShuttingDown.Code, 0}
	var last []*conn
	b.conns.each(func(c *conn) bool {
		if c.v5.Load() {
			_, _ = c.Write(shuttingDown)
		}
		c.client.Stop(packets.ErrServerShuttingDown)
		last = append(last, c)
		return true
	})
	flushed := make(chan struct{})
	go func() {
		defer close(flushed)
		for _, c := range last {
			c.Flush() // or the listeners cut it off; all have started to wait at the same time
		}
	}()
	select {
	case <-flushed:
	case <-ctx.Done():
	}
	var errs []error
	for _, t := range b.tcp {
		errs = append(errs, t.Stop(ctx))
	}
	return errors.Join(append(errs, b.ws.Stop(ctx))...)
}

func (b *Broker) closeLog() error {
	if b.log == nil {
		return nil
	}
	if err := b.log.Close(); err != nil {
		return fmt.Errorf("close message log: %w", err)
	}
	return nil
}

// WebSocketHandler serves MQTT over WebSocket, to be mounted at /mqtt.
func (b *Broker) WebSocketHandler() http.Handler { return b.ws }

// MQTTAddr returns where MQTT over TCP is spoken, nil if it is not.
func (b *Broker) MQTTAddr() net.Addr { return b.addrOf(b.cfg.MQTTAddr != "", 0) }

// MQTTSAddr returns where MQTT over TLS is spoken, nil if it is not.
func (b *Broker) MQTTSAddr() net.Addr { return b.addrOf(b.cfg.MQTTSAddr != "", len(b.tcp)-1) }

func (b *Broker) addrOf(there bool, i int) net.Addr {
	if !there {
		return nil
	}
	return b.tcp[i].Addr()
}

// Failed gives the error after which the broker cannot go on: its log is broken and the
// process should end, to be started again.
func (b *Broker) Failed() <-chan error { return b.failed }

// Ready returns nil if the broker takes messages.
func (b *Broker) Ready() error {
	if b.stopping.Load() {
		return errors.New("the broker is stopping")
	}
	return nil
}

// messageTooLarge tells a client that it misses a message on a topic outside the chat because
// of its own Maximum Packet Size (MQTT 5, 3.1.2.11.4). It does not wait.
func (b *Broker) messageTooLarge(s *session.Session, topic string) {
	refusal := chat.Refuse(chat.CodeTooLarge,
		fmt.Sprintf("a message on %s is larger than the maximum packet size that you announced; announce a larger one", topic))
	go b.engine.Signal(chat.ErrorTopic(s.Subject), refusal.Payload(topic, ""))
}
