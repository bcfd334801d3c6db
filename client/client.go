package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/cleave-project/cleave/api"
)

// DefaultSocket is where the daemon listens unless told otherwise.
const DefaultSocket = "/run/cleave/cleave.sock"

// Options say how to reach a daemon.
type Options struct {
	Socket  string // path of the unix socket; DefaultSocket if empty
	Host    string // http(s)://HOST:PORT: use TCP instead of the socket
	Token   string // bearer token, needed over TCP
	CAFile  string // PEM certificates to trust instead of the system's
	Project string // project of all calls; api.DefaultProject if empty
}

// Client calls one daemon on behalf of one project.
type Client struct {
	http    *http.Client
	base    url.URL
	token   string
	project string
	target  string // the socket's path or the host, for messages
}

// New makes a client; it connects on the first call.
func New(o Options) (*Client, error) {
	if o.Project == "" {
		o.Project = api.DefaultProject
	}
	tr := &http.Transport{
		DisableCompression: true,
		IdleConnTimeout:    30 * time.Second,
		WriteBufferSize:    64 << 10,
		ReadBufferSize:     64 << 10,
	}
	c := &Client{http: &http.Client{Transport: tr}, token: o.Token, project: o.Project}
	if o.Host == "" {
		c.useSocket(o.Socket, tr)
		return c, nil
	}
	return c, c.useHost(o, tr)
}

func (c *Client) useSocket(path string, tr *http.Transport) {
	if path == "" {
		path = DefaultSocket
	}
	c.target = strings.TrimPrefix(path, "unix://")
	c.base = url.URL{Scheme: "http", Host: "cleave"}
	var d net.Dialer
	tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", c.target)
	}
}

func (c *Client) useHost(o Options, tr *http.Transport) error {
	u, err := url.Parse(o.Host)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return api.Errorf(api.CodeInvalid, "%q is not the address of a host", o.Host).WithHint("write https://HOST:PORT")
	}
	c.target = u.Scheme + "://" + u.Host
	c.base = url.URL{Scheme: u.Scheme, Host: u.Host}
	if o.CAFile == "" {
		return nil
	}
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "reading the trusted certificates: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return api.Errorf(api.CodeInvalid, "%s holds no PEM certificate", o.CAFile)
	}
	tr.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return nil
}

// Project is the project of the client's calls.
func (c *Client) Project() string { return c.project }

// InProject returns a client for another project over the same connections.
func (c *Client) InProject(project string) *Client {
	d := *c
	d.project = project
	return &d
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// unreachable explains a failure to talk to the daemon at all.
func (c *Client) unreachable(err error) error {
	var tlsErr *tls.CertificateVerificationError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case c.base.Host != "cleave" && errors.As(err, &tlsErr):
		return api.Errorf(api.CodeUnauthorized, "%s can't be trusted: %w", c.target, tlsErr.Err).
			WithHint("give the certificate it was signed with by --ca-file")
	case c.base.Host != "cleave":
		return api.Errorf(api.CodeUnavailable, "connecting to %s: %w", c.target, cause(err))
	case errors.Is(err, fs.ErrPermission):
		return api.Errorf(api.CodeForbidden, "no permission to open the daemon's socket %s", c.target).
			WithHint("be root or in the group cleave: 'usermod -aG cleave $USER', then log in again")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return api.Errorf(api.CodeUnavailable, "the daemon does not answer at %s: %w", c.target, cause(err)).
			WithHint("start it with 'systemctl start cleaved', or name its socket with --socket or CLEAVE_SOCKET")
	}
	return api.Errorf(api.CodeUnavailable, "the daemon at %s broke off: %w", c.target, cause(err))
}

// cause strips what net/http and net wrap around a system call's error, as
// the message names the target already.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
