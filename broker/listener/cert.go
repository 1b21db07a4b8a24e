package listener

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// certCheckInterval is the shortest time between two checks of the files for
// changes.
const certCheckInterval = time.Second

// CertReloader serves a certificate from files. A later handshake loads new
// files, such as an ACME client or a Kubernetes secret writes. It needs no
// goroutine and no signal. Files that do not match or cannot be read are logged,
// and the previous certificate stays in use.
type CertReloader struct {
	certFile, keyFile string
	log               *slog.Logger

	cert atomic.Pointer[tls.Certificate]

	mu         sync.Mutex // guards what follows; held while files are read
	lastCheck  time.Time
	triedFiles [2]fileVersion // the versions of both files at the last attempt
}

// fileVersion identifies the content of a file without reading it.
type fileVersion struct {
	modified time.Time
	size     int64
	info     os.FileInfo // for os.SameFile: a file may be replaced by one with the same time and size
}

// NewCertReloader loads the certificate chain and the private key, both PEM. It
// fails with the file's name when they cannot be used.
func NewCertReloader(certFile, keyFile string, log *slog.Logger) (*CertReloader, error) {
	if certFile == "" || keyFile == "" {
		return nil, errors.New("TLS needs a certificate file and a key file")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &CertReloader{certFile: certFile, keyFile: keyFile, log: log}
	if _, err := r.reloadIfChanged(time.Now()); err != nil {
		return nil, err
	}
	return r, nil
}

// TLSConfig returns a server configuration with the reloaded certificate, TLS
// 1.2 and 1.3, and Go's defaults otherwise. It requires no ALPN protocol,
// since MQTT clients offer none or various ones.
func (r *CertReloader) TLSConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: r.GetCertificate}
}

// GetCertificate implements tls.Config.GetCertificate.
func (r *CertReloader) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	// One handshake checks the files; concurrent ones use the current
	// certificate.
	if r.mu.TryLock() {
		defer r.mu.Unlock()
		if now := time.Now(); now.Sub(r.lastCheck) >= certCheckInterval {
			changed, err := r.reloadIfChanged(now)
			switch {
			case err != nil:
				r.log.Error("the TLS certificate on disk cannot be used, the one before stays", "error", err.Error())
			case changed:
				r.log.Info("TLS certificate reloaded", "file", r.certFile)
			}
		}
	}
	return r.cert.Load(), nil
}

// reloadIfChanged loads the files if they have changed since they were last tried, so
// that a broken pair is reported once.
func (r *CertReloader) reloadIfChanged(now time.Time) (changed bool, err error) {
	r.lastCheck = now
	var versions [2]fileVersion
	for i, name := range []string{r.certFile, r.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			if r.triedFiles[i].info == nil && r.cert.Load() != nil {
				return false, nil // the file is missing, which is reported
			}
			r.triedFiles[i] = fileVersion{}
			return false, fmt.Errorf("load TLS certificate: %w", err)
		}
		versions[i] = fileVersion{modified: info.ModTime(), size: info.Size(), info: info}
	}
	if versions[0].same(r.triedFiles[0]) && versions[1].same(r.triedFiles[1]) {
		return false, nil
	}
	r.triedFiles = versions
	cert, err := tls.LoadX509KeyPair(r.certFile, r.keyFile)
	if err != nil {
		return false, fmt.Errorf("load TLS certificate %s with key %s: %w", r.certFile, r.keyFile, err)
	}
	r.cert.Store(&cert)
	return true, nil
}

func (v fileVersion) same(o fileVersion) bool {
	return v.info != nil && o.info != nil && v.size == o.size && v.modified.Equal(o.modified) && os.SameFile(v.info, o.info)
}
