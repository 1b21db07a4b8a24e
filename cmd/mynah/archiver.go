package main

import (
	"context"
	"errors"
	"net"
	"net/url"

	"mynah/archiver"
)

// startArchiver connects the archive to the broker. It tries until it succeeds, so
// neither side need be there yet.
func (s *server) startArchiver(ctx context.Context, brokerURL string, token func(context.Context) (string, error)) (*archiver.Archiver, error) {
	trust, err := s.cfg.brokerTLS()
	if err != nil {
		return nil, err
	}
	a, err := archiver.New(archiver.Config{
		BrokerURL:   brokerURL,
		TLS:         trust,
		Token:       token,
		DatabaseURL: s.cfg.DatabaseURL.Reveal(),
		BatchSize:   s.cfg.BatchSize,
		Linger:      s.cfg.Linger,
		MaxBytes:    int64(s.cfg.MaxBytes),
		KeepAlive:   s.cfg.KeepAlive,
		Retention:   s.cfg.ArchiveRetention,
		Logger:      s.log.With("part", "archiver"),
	})
	if err != nil {
		return nil, err
	}
	s.registry.MustRegister(a.Collector())
	if err := a.Start(ctx); err != nil {
		return nil, err
	}
	// It commits and acknowledges what it has received. A PostgreSQL that does not
	// take it is no failure of the stop.
	s.shutdown.push("archiver", func(ctx context.Context) error {
		err := a.Stop(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			s.log.Warn("what the archiver holds is not in PostgreSQL yet; the broker delivers it again after the next start", "err", err)
			return nil
		}
		return err
	})
	return a, nil
}

// brokerURL returns --broker-url in the words that the client library knows.
func (u *Upstream) brokerURL() string {
	parsed, err := url.Parse(u.BrokerURL)
	if err != nil {
		return u.BrokerURL // validate has refused it
	}
	if parsed.Port() == "" && parsed.Host != "" {
		port := map[string]string{"mqtt": "1883", "tcp": "1883", "mqtts": "8883", "ssl": "8883", "tls": "8883"}[parsed.Scheme]
		if port != "" {
			parsed.Host = net.JoinHostPort(parsed.Hostname(), port)
		}
	}
	if parsed.Path == "" && (parsed.Scheme == "ws" || parsed.Scheme == "wss") {
		parsed.Path = "/mqtt"
	}
	return parsed.String()
}
