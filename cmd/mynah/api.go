package main

import (
	"context"

	"mynah"
	"mynah/api"
)

// startAPI makes the HTTP API, which serveHTTP mounts.
func (s *server) startAPI(ctx context.Context, dev bool) error {
	log := s.log.With("part", "api")
	people, err := s.cfg.accounts(dev, log)
	if err != nil {
		return err
	}
	if !dev {
		s.cfg.warn(s.cfg.Identity, s.log)
	}
	proxies, err := s.cfg.proxies()
	if err != nil {
		return err
	}
	a, err := api.New(api.Config{
		DB: s.pool, Verifier: s.verifier, Keys: s.keys, People: people, Groups: s.cfg.groupLimits(),
		Origins: s.cfg.AllowOrigin, TrustedProxies: proxies, ForwardedHeader: s.cfg.Forwarded, AddressLimits: s.cfg.AddressLimits,
		PublicURL: s.cfg.PublicURL, Protocol: mynah.Protocol, Log: log,
	})
	if err != nil {
		return err
	}
	if err := a.Start(ctx); err != nil {
		return err
	}
	s.shutdown.push("API", a.Stop)
	s.api = a
	return nil
}
