package migrate

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// Identity is what a side shows of itself, and whom it believes.
type Identity struct {
	Certificate []byte // PEM, with those between it and the root
	Key         []byte // PEM
	Roots       []byte // PEM, of who has signed the other side's
	// Peer is the name that the other side's certificate must have. A
	// destination may leave it empty, for anybody whom the roots know.
	Peer string
}

func (i *Identity) config() (*tls.Config, error) {
	cert, err := tls.X509KeyPair(i.Certificate, i.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate for a migration: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(i.Roots) {
		return nil, errors.New("certificate for a migration: there is none of who signs the other side's")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: roots, ClientCAs: roots,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: i.Peer, SessionTicketsDisabled: true,
	}, nil
}

// client is the source's side.
func (i *Identity) client() (*tls.Config, error) {
	if i.Peer == "" {
		return nil, errors.New("certificate for a migration: the destination's name is missing")
	}
	return i.config()
}

// server is the destination's side.
func (i *Identity) server() (*tls.Config, error) {
	c, err := i.config()
	if err != nil || i.Peer == "" {
		return c, err
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		return s.PeerCertificates[0].VerifyHostname(i.Peer)
	}
	return c, nil
}
