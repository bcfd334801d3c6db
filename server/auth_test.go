package server

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// asOther is set in the environment of the child that calls as another user.
const asOther = "CLEAVE_TEST_CALL"

func TestMain(m *testing.M) {
	if socket := os.Getenv(asOther); socket != "" {
		os.Exit(callAsOther(socket))
	}
	if os.Getenv(asAgent) != "" {
		os.Exit(runAgent())
	}
	os.Exit(m.Run())
}

func callAsOther(socket string) int {
	c, err := net.Dial("unix", socket)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Fprint(c, os.Getenv(asOther+"_REQUEST"))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	body, _ := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(body))
	return 0
}

// callAs sends a request from a process with these ids.
func (h *harness) callAs(cred *syscall.Credential, request string) string {
	h.Helper()
	if os.Getuid() != 0 {
		h.Skip("needs root, who alone can call as another user")
	}
	for dir := filepath.Dir(h.socket); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			h.Fatal(err)
		}
	}
	if err := os.Chmod(h.socket, 0o666); err != nil {
		h.Fatal(err)
	}
	// The magic link is opened without a walk, so the other user needs no
	// way to the test binary.
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{asOther + "=" + h.socket, asOther + "_REQUEST=" + request}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

const plainGet = "GET /v1/host HTTP/1.1\r\nHost: cleave\r\nConnection: close\r\n\r\n"

func TestUnixSocketAdmitsRootAndTheGroupOnly(t *testing.T) {
	g, err := user.LookupGroup("daemon")
	if err != nil {
		t.Skipf("needs a group that isn't root's: %v", err)
	}
	id, _ := strconv.ParseUint(g.Gid, 10, 32)
	gid := uint32(id)
	h := startWith(t, Options{Backend: newFake(), Group: "daemon", Log: quiet()}, defaultTimeouts)
	for _, tc := range []struct {
		name string
		cred syscall.Credential
		want string
	}{
		{"root", syscall.Credential{}, "200 "},
		{"stranger", syscall.Credential{Uid: 65534, Gid: 65534}, "403 "},
		{"root's group does not count", syscall.Credential{Uid: 65534, Gid: 0}, "403 "},
		{"primary group", syscall.Credential{Uid: 65534, Gid: gid}, "200 "},
		{"supplementary group", syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{7, gid}}, "200 "},
		{"many groups", syscall.Credential{Uid: 65534, Gid: 65534, Groups: manyGroups(gid)}, "200 "},
		{"other groups", syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{7, 8}}, "403 "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := *h
			h.T = t
			if got := h.callAs(&tc.cred, plainGet); !strings.HasPrefix(got, tc.want) {
				t.Errorf("got %s", got)
			}
		})
	}
}

func manyGroups(last uint32) []uint32 {
	var groups []uint32
	for i := range uint32(500) {
		groups = append(groups, 10000+i)
	}
	return append(groups, last)
}

func TestOnlyRootMayNamePathsOfTheHost(t *testing.T) {
	f := newFake()
	f.add("default", "web", 1)
	h := startWith(t, Options{Backend: f, Group: "daemon", Log: quiet()}, defaultTimeouts)
	g, err := user.LookupGroup("daemon")
	if err != nil {
		t.Skipf("needs a group that isn't root's: %v", err)
	}
	id, _ := strconv.ParseUint(g.Gid, 10, 32)
	member := &syscall.Credential{Uid: 65534, Gid: uint32(id)}
	mounts := `"mounts":[{"hostPath":"/etc","target":"/mnt"}]`
	requests := [][3]string{
		{"POST", "/v1/instances", `{"name":"a","spec":{"image":"base",` + mounts + `}}`},
		{"PATCH", "/v1/instances/web", `{"spec":{` + mounts + `}}`},
		{"POST", "/v1/pools", `{"name":"p","spec":{"driver":"dir","source":"/etc"}}`},
	}
	for _, r := range requests {
		raw := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: cleave\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", r[0], r[1], len(r[2]), r[2])
		if got := h.callAs(member, raw); !strings.HasPrefix(got, "403 ") || !strings.Contains(got, "root") {
			t.Errorf("%s %s by a member of the group: %s", r[0], r[1], got)
		}
		if resp, text := h.do(r[0], r[1], r[2]); resp.StatusCode >= 300 {
			t.Errorf("%s %s by root: %s %s", r[0], r[1], resp.Status, text)
		}
	}
	tcp := startTCP(t, f)
	for _, r := range requests {
		if p := tcp.fails(r[0], r[1], r[2]); p.Code != api.CodeForbidden {
			t.Errorf("%s %s by a token: %+v", r[0], r[1], p)
		}
	}
}

// What huma, the check and the backend decode must be the same: each of these
// tries to show one of them something else.
func TestHostPathsCannotBeSmuggled(t *testing.T) {
	f := newFake()
	f.add("default", "web", 1)
	h := startTCP(t, f)
	mount := `[{"hostPath":"/etc","target":"/mnt"}]`
	for _, patch := range []string{
		`{"spec":{"mounts":` + mount + `},"spec":{"mounts":[]}}`,
		`{"spec":{"mounts":` + mount + `,"mounts":[]}}`,
		`{"Spec":{"mounts":` + mount + `}}`,
		`{"spec":{"Mounts":` + mount + `}}`,
		`{"spec":{"mounts":[{"HostPath":"/etc","target":"/mnt"}]}}`,
		`{"spec":{"mounts":[{"hostPath":"/etc","hostPath":"","target":"/mnt"}]}}`,
		`{"spec":{"m\u006funts":` + mount + `}}`,
	} {
		if p := h.fails("PATCH", "/v1/instances/web", patch); p.Status < 400 || f.lastPatch != "" {
			t.Errorf("%s got through: %+v", patch, p)
		}
	}
}

func TestTCPNeedsAToken(t *testing.T) {
	h := startTCP(t, newFake())
	for _, path := range []string{"/v1/host", "/metrics", "/healthz", "/openapi.json", "/nothing"} {
		for _, auth := range []string{"", "Bearer ", "Bearer wrong", "Basic " + goodToken, goodToken} {
			if p := h.fails("GET", path, "", "Authorization", auth); p.Status != 401 {
				t.Errorf("%s with %q: %d", path, auth, p.Status)
			}
		}
		if resp, _ := h.do("GET", path, ""); resp.StatusCode == 401 {
			t.Errorf("%s with a good token: %s", path, resp.Status)
		}
	}
	resp, _ := h.do("GET", "/v1/host", "", "Authorization", "")
	if resp.Header.Get("WWW-Authenticate") == "" {
		t.Error("no challenge")
	}
}

func TestTCPRefusesWhatABrowserWasMadeToSend(t *testing.T) {
	h := startTCP(t, newFake())
	own := strings.TrimPrefix(h.base, "http://")
	for _, tc := range []struct {
		name   string
		header []string
		status int
	}{
		{"own origin", []string{"Origin", "http://" + own, "Sec-Fetch-Site", "same-origin"}, 200},
		{"address bar", []string{"Sec-Fetch-Site", "none"}, 200},
		{"other origin", []string{"Origin", "http://evil.example"}, 403},
		{"opaque origin", []string{"Origin", "null"}, 403},
		{"other port", []string{"Origin", "http://127.0.0.1:1"}, 403},
		{"cross site", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"same site", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"rebound name", []string{"Host", "evil.example"}, 403},
		{"rebound name with origin", []string{"Host", "evil.example", "Origin", "http://evil.example"}, 403},
		{"localhost", []string{"Host", "localhost:1"}, 200},
		{"IPv6 loopback", []string{"Host", "[::1]:1"}, 200},
	} {
		if resp, text := h.do("GET", "/v1/host", "", tc.header...); resp.StatusCode != tc.status {
			t.Errorf("%s: %s %s", tc.name, resp.Status, text)
		}
	}
}

func TestListenTCPRefusesOpenAddressesWithoutTLS(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0", "example.org:0"} {
		if l, err := ListenTCP(addr, "", ""); err == nil {
			l.Close()
			t.Errorf("listens on %s", addr)
		} else if !api.IsCode(err, api.CodeInvalid) || !strings.Contains(err.Error(), "TLS") {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if _, err := ListenTCP("127.0.0.1:0", "cert.pem", ""); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("a certificate without a key: %v", err)
	}
}

func TestServesTLS(t *testing.T) {
	cert, key := certificate(t)
	l, err := ListenTCP("127.0.0.1:0", cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	p, _ := os.ReadFile(cert)
	pool.AppendCertsFromPEM(p)
	h := &harness{T: t, s: New(Options{Backend: newFake(), Log: quiet()}), base: "https://" + l.Addr().String(), header: http.Header{}}
	h.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}
	h.serve(t, l, Access{})
	if resp, _ := h.do("GET", "/v1/host", "", "Authorization", "Bearer "+goodToken); resp.StatusCode != 200 || resp.ProtoMajor != 2 {
		t.Errorf("got %s over %s", resp.Status, resp.Proto)
	}
	if resp, _ := h.do("GET", "/v1/host", ""); resp.StatusCode != 401 {
		t.Errorf("without a token: %s", resp.Status)
	}
}

// certificate writes a certificate for 127.0.0.1 and its key.
func certificate(t *testing.T) (cert, key string) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
}

func TestListenUnixReplacesOnlyDeadSockets(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := ListenUnix(path, "no-such-group")
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v", st.Mode())
	}
	if _, err := ListenUnix(path, ""); !api.IsCode(err, api.CodeBusy) {
		t.Errorf("over a live socket: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close() // as after kill -9: the file stays
	l, err = ListenUnix(path, "daemon")
	if err != nil {
		t.Fatalf("over a dead socket: %v", err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o660 {
		t.Errorf("mode is %v", st.Mode())
	}
	l.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(path, ""); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("over a file: %v", err)
	}
}

func TestSlowHeadersAreCutOff(t *testing.T) {
	h := start(t, newFake(), func(t *timeouts) { t.header = 200 * time.Millisecond })
	c, err := net.Dial("unix", h.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /v1/host HTTP/1.1\r\nHost: cl")
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadAll(c); err != nil {
		t.Errorf("the connection stays open: %v", err)
	}
}
