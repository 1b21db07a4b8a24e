package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"mynah/api"
	"mynah/archiver"
	"mynah/authhook"
	"mynah/broker"
	"mynah/broker/delivery"
	"mynah/broker/listener"
	"mynah/broker/msglog"
	"mynah/broker/outbox"
	"mynah/broker/pubsub"
	"mynah/chat"
	"mynah/groups"
	"mynah/internal/forwarded"
	"mynah/people"
)

// defaults are the defaults of flags that have one in a library, where it is the only one:
// in the tags of the flags they are ${name}. A flag whose default is another than the
// library's, for example 0 for no limit, has it in its tag.
var defaults = kong.Vars{
	"forwarded_header": forwarded.XForwardedFor,
	"max_payload":      Bytes(chat.DefaultPayload).String(),
	"max_depth":        fmt.Sprint(chat.DefaultDepth),
	"max_message":      Bytes(chat.DefaultRendered).String(),
	"session_expiry":   shortDuration(broker.DefaultSessionExpiry),

	"max_group_members": fmt.Sprint(groups.DefaultMaxMembers),
	"max_groups":        fmt.Sprint(groups.DefaultMaxGroups),
	"invitation_ttl":    shortDuration(groups.DefaultInvitationTTL),
	"address_limits":    fmt.Sprint(api.DefaultAddressLimits),
	"wechat_base_url":   people.DefaultWeChatURL,

	"connect_timeout":         shortDuration(listener.DefaultFirstPacketTimeout),
	"websocket_ping_interval": shortDuration(listener.DefaultPingInterval),
	"sys_interval":            shortDuration(broker.DefaultSystemInterval),
	"presence_settle":         shortDuration(broker.DefaultPresenceSettle),
	"max_sessions":            fmt.Sprint(delivery.DefaultMaxSessions),
	"max_subscriptions":       fmt.Sprint(broker.DefaultMaxSubscriptions),
	"max_wildcards":           fmt.Sprint(pubsub.DefaultMaxWildcards),
	"max_inflight":            fmt.Sprint(delivery.DefaultWindow),
	"max_outbox":              Bytes(outbox.DefaultPerConn).String(),
	"max_outbox_total":        Bytes(outbox.DefaultTotal).String(),
	"max_queued_messages":     fmt.Sprint(pubsub.DefaultQueuedMessages),
	"max_queued_bytes":        Bytes(pubsub.DefaultQueuedBytes).String(),
	"max_queued_total":        Bytes(pubsub.DefaultQueuedTotal).String(),
	"max_retained":            Bytes(pubsub.DefaultRetainedBytes).String(),
	"min_free_space":          Bytes(msglog.DefaultMinFree).String(),
	"disk_ballast":            Bytes(msglog.DefaultBallast).String(),
	"message_log_cache":       Bytes(msglog.DefaultCacheBytes).String(),
	"message_log_memtable":    Bytes(msglog.DefaultMemTableBytes).String(),
	"refused_connect_rate":    fmt.Sprint(authhook.DefaultFailureRate),
	"refused_connect_burst":   fmt.Sprint(authhook.DefaultFailureBurst),
	"jwt_leeway":              shortDuration(authhook.DefaultLeeway),
	"jwks_refresh":            shortDuration(authhook.DefaultRefreshInterval),
	"jwks_refresh_gap":        shortDuration(authhook.DefaultRefreshGap),
	"archiver_batch_size":     fmt.Sprint(archiver.DefaultBatchSize),
	"archiver_linger":         shortDuration(archiver.DefaultLinger),
	"archiver_max_bytes":      Bytes(archiver.DefaultMaxBytes).String(),
	"archiver_keep_alive":     shortDuration(archiver.DefaultKeepAlive),
}

// shortDuration returns 168h rather than 168h0m0s.
func shortDuration(d time.Duration) string {
	text := d.String()
	if short, ok := strings.CutSuffix(text, "m0s"); ok {
		text = short + "m"
	}
	if short, ok := strings.CutSuffix(text, "h0m"); ok {
		text = short + "h"
	}
	return text
}

// limitsGroup is the group of flags that few installations change. They are left out of
// --help and shown by --help-all.
const limitsGroup = "limits"

// BrokerLimits are limits of the broker that are rarely changed.
type BrokerLimits struct {
	ConnectTimeout time.Duration `default:"${connect_timeout}" placeholder:"DURATION" help:"How long a connection may take until its CONNECT has come, whole."`
	PingInterval   time.Duration `name:"websocket-ping-interval" default:"${websocket_ping_interval}" placeholder:"DURATION" help:"How often the broker pings WebSockets, which keeps proxies from closing them; 0 for never."`
	SysInterval    time.Duration `default:"${sys_interval}" placeholder:"DURATION" help:"How often the figures on $$SYS/broker are published."`
	PresenceSettle time.Duration `default:"${presence_settle}" placeholder:"DURATION" help:"How long somebody stays online after the last connection has ended; 0 for not at all."`

	MaxSessions      int `name:"max-sessions-per-subject" default:"${max_sessions}" placeholder:"N" help:"Most sessions of one person or device. The one that has been offline for longest gives way."`
	MaxSubscriptions int `name:"max-subscriptions-per-session" default:"${max_subscriptions}" placeholder:"N" help:"Most subscriptions of a session."`
	MaxWildcards     int `name:"max-wildcards-per-subject" default:"${max_wildcards}" placeholder:"N" help:"Most different filters with + or # outside the chat that one person or device has in all sessions together; 8 times as many levels, and 20 times as many subscriptions."`
	MaxInflight      int `default:"${max_inflight}" placeholder:"N" help:"Most messages that a session may have unacknowledged; a client that asks for fewer gets fewer."`

	MaxOutbox         Bytes `default:"${max_outbox}" placeholder:"BYTES" help:"Most bytes that wait to be written to one connection. What is beyond waits in the log."`
	MaxOutboxTotal    Bytes `default:"${max_outbox_total}" placeholder:"BYTES" help:"Most bytes that wait to be written to all connections together."`
	MaxQueuedMessages int   `default:"${max_queued_messages}" placeholder:"N" help:"Most messages outside the chat that wait for one session. What is beyond is dropped."`
	MaxQueuedBytes    Bytes `default:"${max_queued_bytes}" placeholder:"BYTES" help:"Most bytes of them, less where much waits for others."`
	MaxQueuedTotal    Bytes `default:"${max_queued_total}" placeholder:"BYTES" help:"Most bytes of them for all sessions together."`
	MaxRetained       Bytes `name:"max-retained-bytes" default:"${max_retained}" placeholder:"BYTES" help:"Most memory that retained messages take together. What is beyond is refused."`

	MinFreeSpace Bytes `default:"${min_free_space}" placeholder:"BYTES" help:"Free space on the disk of --data-dir below which no message is accepted; at least twice --message-log-memtable."`
	DiskBallast  Bytes `default:"${disk_ballast}" placeholder:"BYTES" help:"A file of this size is given up when the disk is full all the same, to end in good order; 0 for none."`
	LogCache     Bytes `name:"message-log-cache" default:"${message_log_cache}" placeholder:"BYTES" help:"Memory for what was read from the message log."`
	LogMemTable  Bytes `name:"message-log-memtable" default:"${message_log_memtable}" placeholder:"BYTES" help:"How much of the message log is collected in memory before it is written out sorted."`

	RefusedConnectRate  float64 `default:"${refused_connect_rate}" placeholder:"N" help:"Refused CONNECTs a second, on average, from which on others from the same address are not looked at; 0 for no limit."`
	RefusedConnectBurst int     `default:"${refused_connect_burst}" placeholder:"N" help:"How many of them may come at once."`
}

// TokenLimits are limits of the verification of tokens that are rarely changed.
type TokenLimits struct {
	JWTLeeway      time.Duration `name:"jwt-leeway" default:"${jwt_leeway}" placeholder:"DURATION" help:"How far the clock of who signs tokens may be ahead, for nbf; 0 for not at all."`
	JWKSRefresh    time.Duration `name:"jwks-refresh-interval" default:"${jwks_refresh}" placeholder:"DURATION" help:"How often a URL of --jwks is fetched."`
	JWKSRefreshGap time.Duration `name:"jwks-refresh-gap" default:"${jwks_refresh_gap}" placeholder:"DURATION" help:"Least time between two fetches that tokens with unknown keys cause."`
}

// ArchiverLimits are limits of the archiver that are rarely changed.
type ArchiverLimits struct {
	BatchSize int           `name:"archiver-batch-size" default:"${archiver_batch_size}" placeholder:"N" help:"Most messages that one transaction of the archiver stores."`
	Linger    time.Duration `name:"archiver-linger" default:"${archiver_linger}" placeholder:"DURATION" help:"How long a message waits for others to share its transaction."`
	MaxBytes  Bytes         `name:"archiver-max-bytes" default:"${archiver_max_bytes}" placeholder:"BYTES" help:"Memory for messages that are not stored yet. Beyond it the archiver reads no more from the broker."`
	KeepAlive time.Duration `name:"archiver-keep-alive" default:"${archiver_keep_alive}" placeholder:"DURATION" help:"MQTT's Keep Alive of the archiver."`
}

// within refuses a value outside of the bounds. What else is right, such as 0 for never,
// the caller has looked at.
func within[T cmp.Ordered](flag string, value, least, most T) error {
	if value >= least && value <= most { // NaN is not
		return nil
	}
	return refuse(flag, "is %v; give %v to %v", value, least, most)
}

// orZero is within, or 0.
func orZero[T cmp.Ordered](flag string, value, least, most T) error {
	var zero T
	if value == zero || value >= least && value <= most {
		return nil
	}
	return refuse(flag, "is %v; give %v to %v, or 0", value, least, most)
}

// promised is within for what PROTOCOL.md promises to clients, who may rely on it.
func promised(flag string, value, least, most int) error {
	if value >= least && value <= most {
		return nil
	}
	return refuse(flag, "is %d; give %d, which PROTOCOL.md promises to clients, to %d", value, least, most)
}

const (
	kib = Bytes(1 << 10)
	mib = Bytes(1 << 20)
	gib = Bytes(1 << 30)
	tib = Bytes(1 << 40)
)

// validate checks the limits, if the command has them.
func (l *BrokerLimits) validate() error {
	if *l == (BrokerLimits{}) {
		return nil
	}
	errs := []error{
		within("connect-timeout", l.ConnectTimeout, time.Second, 5*time.Minute),
		orZero("websocket-ping-interval", l.PingInterval, time.Second, time.Hour),
		within("sys-interval", l.SysInterval, time.Second, 24*time.Hour),
		orZero("presence-settle", l.PresenceSettle, time.Millisecond, time.Hour),
		promised("max-sessions-per-subject", l.MaxSessions, delivery.DefaultMaxSessions, 100_000),
		promised("max-subscriptions-per-session", l.MaxSubscriptions, broker.DefaultMaxSubscriptions, 100_000),
		promised("max-wildcards-per-subject", l.MaxWildcards, pubsub.DefaultMaxWildcards, 1_000_000),
		within("max-inflight", l.MaxInflight, 1, 32_768), // half of the packet ids
		within("max-outbox", l.MaxOutbox, 16*kib, gib),
		within("max-outbox-total", l.MaxOutboxTotal, mib, tib),
		within("max-queued-messages", l.MaxQueuedMessages, 1, 10_000_000),
		within("max-queued-bytes", l.MaxQueuedBytes, kib, gib),
		within("max-queued-total", l.MaxQueuedTotal, mib, tib),
		within("max-retained-bytes", l.MaxRetained, mib, tib),
		within("min-free-space", l.MinFreeSpace, mib, tib),
		orZero("disk-ballast", l.DiskBallast, kib, gib),
		within("message-log-cache", l.LogCache, mib, tib),
		within("message-log-memtable", l.LogMemTable, mib, gib),
		orZero("refused-connect-rate", l.RefusedConnectRate, 0.01, 1e6),
		within("refused-connect-burst", l.RefusedConnectBurst, 1, 1_000_000),
	}
	if l.MaxOutbox > l.MaxOutboxTotal {
		errs = append(errs, refuse("max-outbox", "is %v, more than --max-outbox-total, which is %v; raise that too", l.MaxOutbox, l.MaxOutboxTotal))
	}
	if l.MaxQueuedBytes > l.MaxQueuedTotal {
		errs = append(errs, refuse("max-queued-bytes", "is %v, more than --max-queued-total, which is %v; raise that too", l.MaxQueuedBytes, l.MaxQueuedTotal))
	}
	if l.MinFreeSpace < 2*l.LogMemTable {
		errs = append(errs, refuse("min-free-space", "is %v, too little to write out what --message-log-memtable has in memory; give at least twice that, %v", l.MinFreeSpace, 2*l.LogMemTable))
	}
	return errors.Join(errs...)
}

// setLimits sets the limits of a broker. To a library 0 is its default, and below 0 is none.
func (l *BrokerLimits) setLimits(cfg *broker.Config) {
	cfg.FirstPacketTimeout, cfg.SystemInterval = l.ConnectTimeout, l.SysInterval
	cfg.PingInterval, cfg.PresenceSettle = zeroIsNone(l.PingInterval), zeroIsNone(l.PresenceSettle)
	cfg.MaxSessions, cfg.MaxSubscriptions, cfg.Window = l.MaxSessions, l.MaxSubscriptions, l.MaxInflight
	cfg.MaxWildcards = l.MaxWildcards
	cfg.Outbox, cfg.OutboxTotal = int(l.MaxOutbox), int64(l.MaxOutboxTotal)
	cfg.QueuedMessages, cfg.QueuedBytes, cfg.QueuedTotal = l.MaxQueuedMessages, int(l.MaxQueuedBytes), int64(l.MaxQueuedTotal)
	cfg.RetainedBytes = int64(l.MaxRetained)
	cfg.Log.CacheBytes, cfg.Log.MemTableBytes = int64(l.LogCache), uint64(l.LogMemTable)        //nolint:gosec // validate has seen that it is positive
	cfg.Log.MinFree, cfg.Log.Ballast = uint64(l.MinFreeSpace), int64(zeroIsNone(l.DiskBallast)) //nolint:gosec // the same
}

// limiter returns what holds clients to their rates.
func (l *BrokerLimits) limiter(publishRate float64) *authhook.Limiter {
	return authhook.NewLimiter(authhook.LimiterConfig{
		PublishRate: publishRate, FailureRate: zeroIsNone(l.RefusedConnectRate), FailureBurst: l.RefusedConnectBurst,
	})
}

// validate checks the limits, if the command has them.
func (l *TokenLimits) validate() error {
	if *l == (TokenLimits{}) {
		return nil
	}
	return errors.Join(
		orZero("jwt-leeway", l.JWTLeeway, time.Millisecond, time.Hour),
		within("jwks-refresh-interval", l.JWKSRefresh, time.Second, 24*time.Hour),
		within("jwks-refresh-gap", l.JWKSRefreshGap, time.Second, time.Hour),
	)
}

// validate checks the limits, if the command has them.
func (l *ArchiverLimits) validate() error {
	if *l == (ArchiverLimits{}) {
		return nil
	}
	return errors.Join(
		within("archiver-batch-size", l.BatchSize, 1, 100_000),
		within("archiver-linger", l.Linger, 100*time.Microsecond, 10*time.Second),
		within("archiver-max-bytes", l.MaxBytes, mib, tib),
		within("archiver-keep-alive", l.KeepAlive, time.Second, 65_535*time.Second),
	)
}

// zeroIsNone returns a value below 0, which is none to a library, for 0, which is its
// default there.
func zeroIsNone[T time.Duration | Bytes | float64](value T) T {
	if value == 0 {
		return -1
	}
	return value
}
