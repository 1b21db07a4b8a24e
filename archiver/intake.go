package archiver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

const (
	connectTimeout = 10 * time.Second
	backoffMin     = 200 * time.Millisecond
	backoffMax     = 3 * time.Second
	// stableAfter is how long a connection must have lasted for the next attempt to
	// have no growing pause. Two archivers with one client id end each other's
	// connections, and must not do so at full speed.
	stableAfter = 10 * time.Second

	// logEndTopic is the topic on which the broker publishes the last seq of
	// its log, as text.
	logEndTopic = "$SYS/mynah/log/last"
	// refused is the return code of SUBACK for a refusal (MQTT 3.1.1, 3.9.3).
	refused = 0x80
)

// errLost is returned by session when a connection has ended that was one.
var errLost = errors.New("connection lost")

// schemes are those of a broker's address.
var schemes = []string{"tcp", "mqtt", "ssl", "tls", "mqtts", "ws", "wss"}

// backoff is a pause that doubles, with jitter.
type backoff time.Duration

// wait pauses and reports whether ctx is still alive.
func (b *backoff) wait(ctx context.Context) bool {
	pause := max(backoffMin, min(backoffMax, time.Duration(*b)))
	*b = backoff(2 * pause)
	pause = pause/2 + rand.N(pause/2) //nolint:gosec // jitter need not be secret
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pause):
		return true
	}
}

// keepConnected keeps a connection to the broker until ctx ends.
//
// Each connection is a paho client of its own. paho's own reconnecting keeps
// received messages in its store and acknowledges them on the next connection by
// their old packet ids, which there may belong to messages that are not committed.
func (r *run) keepConnected(ctx context.Context) {
	var pause backoff
	for {
		began := time.Now()
		err := r.runConnection(ctx)
		if ctx.Err() != nil {
			return
		}
		attrs := []any{"broker", r.cfg.BrokerURL, "error", err}
		_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
		switch {
		case time.Since(began) > stableAfter:
			pause = 0
		case untrusted:
			attrs = append(attrs, "advice", "see that --broker-ca has the authority of the broker's certificate, and that the certificate is for the host in --broker-url")
		case isRefused(err):
			attrs = append(attrs, "advice", "see that the token is one that the broker accepts, of role archiver: --jwt-secret (or the secret in --data-dir) must be the broker's, --token-file not expired, --jwt-issuer and --jwt-audience the broker's")
			r.log.ErrorContext(ctx, "the broker refuses the archiver's token; trying again", attrs...)
			if !pause.wait(ctx) {
				return
			}
			continue
		case errors.Is(err, errLost):
			attrs = append(attrs, "advice", "if this repeats, look for another archiver with the client id "+r.cfg.ClientID)
		}
		r.log.WarnContext(ctx, "the archiver is not connected to the broker; trying again", attrs...)
		if !pause.wait(ctx) {
			return
		}
	}
}

// isRefused reports whether the broker refused who we are (MQTT 3.1.1, 3.2.2.3).
func isRefused(err error) bool {
	return errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword) || errors.Is(err, packets.ErrorRefusedNotAuthorised)
}

// runConnection connects, subscribes and returns when the connection has ended.
func (r *run) runConnection(ctx context.Context) error {
	options := mqtt.NewClientOptions().
		AddBroker(r.cfg.BrokerURL).
		SetProtocolVersion(4). // said explicitly: else paho answers a refusal by trying 3.1
		SetClientID(r.cfg.ClientID).
		SetCleanSession(false).
		SetAutoAckDisabled(true).
		SetOrderMatters(true).
		SetAutoReconnect(false).
		SetConnectRetry(false).
		SetConnectTimeout(connectTimeout).
		SetKeepAlive(r.cfg.KeepAlive).
		SetStore(noStore{})
	if r.cfg.Token != nil {
		token, err := r.cfg.Token(ctx)
		if err != nil {
			return fmt.Errorf("get a token: %w", err)
		}
		options.SetUsername(r.cfg.ClientID).SetPassword(token)
	}
	// ended is done as soon as paho closes the connection, so that a handler
	// that waits for room does not keep paho from cleaning up.
	ended, end := context.WithCancel(ctx)
	defer end()
	var opened atomic.Pointer[net.Conn]
	options.SetCustomOpenConnectionFn(dialer(ended, r.cfg.TLS, end, func(c net.Conn) { opened.Store(&c) }))
	// Set before connecting: a resumed session may deliver at once, and what
	// comes without a handler is never acknowledged.
	options.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { r.handle(ended, m) })
	lost := make(chan error, 1)
	options.SetConnectionLostHandler(func(_ mqtt.Client, err error) { lost <- err })

	client := mqtt.NewClient(options)
	connect := client.Connect()
	// A broker that accepts and says nothing must not hold up Stop.
	hurry := context.AfterFunc(ctx, func() {
		if c := opened.Load(); c != nil {
			_ = (*c).Close() // Connect tells
		}
	})
	<-connect.Done()
	hurry()
	if err := connect.Error(); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer client.Disconnect(uint(disconnectTimeout / time.Millisecond))
	if err := subscribe(ctx, client); err != nil {
		return err
	}
	r.stats.setConnected(true)
	r.stats.connections.Inc()
	defer r.stats.setConnected(false)
	r.log.InfoContext(ctx, "the archiver is connected to the broker", "broker", r.cfg.BrokerURL, "client", r.cfg.ClientID)
	select {
	case err := <-lost:
		return fmt.Errorf("%w: %w", errLost, err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func subscribe(ctx context.Context, client mqtt.Client) error {
	everything := map[string]byte{"user/#": 1, "group/#": 1}
	token := client.SubscribeMultiple(everything, nil)
	select {
	case <-token.Done():
	case <-time.After(connectTimeout):
		return errors.New("subscribe: the broker does not answer")
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := token.Error(); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	for filter, code := range token.(*mqtt.SubscribeToken).Result() { //nolint:forcetypeassert // paho's documented type
		if code == refused {
			return fmt.Errorf("subscribe: the broker refuses %s: the token's role must be archiver", filter)
		}
	}
	// Only for the lag, and not every broker has it: the answer does not matter.
	client.Subscribe(logEndTopic, 0, nil)
	return nil
}

// handle takes a message over from paho. It must not block for long: paho reads
// no ping while it does.
func (r *run) handle(ended context.Context, m mqtt.Message) {
	if m.Topic() == logEndTopic {
		if seq, err := strconv.ParseUint(string(m.Payload()), 10, 64); err == nil {
			r.stats.setLogEnd(seq)
		}
		return
	}
	select {
	case <-r.draining:
		return // not acknowledged: it comes again
	default:
	}
	r.enqueue(ended, m)
}

// enqueue waits for room if there is none. The broker's window keeps that from
// happening; with a broker that sends without end TCP must slow it down, and the
// connection may be lost to a ping's time-out, which costs a redelivery.
func (r *run) enqueue(ended context.Context, m mqtt.Message) {
	weight := r.memoryOf(m)
	if r.memory.Acquire(ended, weight) != nil {
		return // the connection is gone: it comes again
	}
	r.stats.received()
	select {
	case r.queue <- m:
		return
	case <-ended.Done():
	case <-r.draining:
	}
	r.memory.Release(weight)
	r.stats.acknowledged(1)
}

// noStore keeps nothing. We publish nothing, and what was received and not
// acknowledged is the broker's to keep.
type noStore struct{}

var _ mqtt.Store = noStore{}

func (noStore) Open()                             {}
func (noStore) Put(string, packets.ControlPacket) {}
func (noStore) Get(string) packets.ControlPacket  { return nil }
func (noStore) All() []string                     { return nil }
func (noStore) Del(string)                        {}
func (noStore) Close()                            {}
func (noStore) Reset()                            {}
