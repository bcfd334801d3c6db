package keeper

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// connPair is both ends of a connection.
func connPair(t testing.TB) (a, b *conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		nc, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = &conn{nc.(*net.UnixConn)}
		t.Cleanup(func() { nc.Close() })
	}
	return ends[0], ends[1]
}

func TestMessagesCarryFiles(t *testing.T) {
	a, b := connPair(t)
	large := request{Op: strings.Repeat("x", 1<<20)} // far more than a socket's buffer
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		a.send(request{Op: "first"})
		a.send(large, w, w)
		a.send(request{Op: "last"})
		w.Close()
	}()
	for _, want := range []struct {
		op    string
		files int
	}{{"first", 0}, {large.Op, 2}, {"last", 0}} {
		var got request
		files, err := b.receive(&got)
		if err != nil || got.Op != want.op || len(files) != want.files {
			t.Fatalf("got %d bytes of op and %d files, %v", len(got.Op), len(files), err)
		}
		for _, f := range files {
			fmt.Fprint(f, "hi ")
			f.Close()
		}
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "hi hi " {
		t.Errorf("through the files came %q %v", got, err)
	}
}

func TestReceiveRefusesOversizedMessage(t *testing.T) {
	a, b := connPair(t)
	a.Write(binary.BigEndian.AppendUint32(nil, maxMessage+1))
	var r request
	if _, err := b.receive(&r); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("error %v", err)
	}
	if err := a.send(request{Op: strings.Repeat("x", maxMessage)}); err == nil {
		t.Error("sent")
	}
}

func TestVersionsAgreeOrSayWhyNot(t *testing.T) {
	tests := []struct {
		theirs hello
		want   int
		code   api.Code
	}{
		{hello{Protocol: protocolName, Oldest: 1, Newest: 1}, 1, ""},
		{hello{Protocol: protocolName, Oldest: 1, Newest: 9}, newestVersion, ""},
		{hello{Protocol: protocolName, Oldest: newestVersion + 1, Newest: 9}, 0, api.CodeUnsupported},
		{hello{Protocol: protocolName}, 0, api.CodeUnsupported},
		{hello{Protocol: "http", Oldest: 1, Newest: 1}, 0, api.CodeInvalid},
	}
	for _, test := range tests {
		got, err := agree(test.theirs)
		if got != test.want || test.code == "" != (err == nil) || err != nil && err.Code != test.code {
			t.Errorf("%+v: version %d, %v", test.theirs, got, err)
		}
	}
}

func TestKeeperSurvivesBadClients(t *testing.T) {
	k := newKeeper(t)
	good := `{"protocol":"cleave-keeper","oldest":1,"newest":1}`
	frame := func(s string) string { return string(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) + s }
	for _, bytes := range []string{
		"", "x", "GET / HTTP/1.1\r\n\r\n", frame("{}"), frame("not json"),
		frame(good) + "\xff\xff\xff\xff", frame(good) + frame(`{"op":"start"}`), frame(good) + frame(`{"op":"adopt","adopt":{}}`),
		frame(good) + frame(`{"op":"fly"}`), frame(good) + frame(`{"op":"attach","id":"none"}`), frame(good) + frame(`[]`),
		frame(good) + frame(`{"op":"start","id":"a","start":{"args":["a"],"dir":"/","logDir":"/"}}`),
	} {
		nc, err := net.Dial("unix", k.socket)
		if err != nil {
			t.Fatal(err)
		}
		nc.Write([]byte(bytes))
		nc.(*net.UnixConn).CloseWrite()
		nc.SetReadDeadline(time.Now().Add(hang))
		if _, err := io.Copy(io.Discard, nc); err != nil && !gone(err) {
			t.Errorf("%q: %v", bytes, err)
		}
		nc.Close()
	}
	if _, err := k.List(t.Context()); err != nil {
		t.Errorf("the keeper is gone: %v", err)
	}
}

func TestSocketIsForItsOwnerAlone(t *testing.T) {
	k := newKeeper(t)
	for _, path := range []string{k.socket, holdPath(k.socket)} {
		st, err := os.Lstat(path)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", path, st.Mode(), err)
		}
	}
	// Also if the mode were wrong, and the directory's too.
	os.Chmod(k.socket, 0o666)
	os.Chmod(k.dir, 0o755)
	r := k.request("a", "connect", k.socket)
	k.start(r)
	k.wait("a")
	if out := k.logs("a", "stdout"); !strings.Contains(out, "refused") {
		t.Errorf("another user got %q", out)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, frameStdin, []byte("hello")), frameEOF, nil))
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		var again []byte
		var buf []byte
		for {
			kind, data, err := readFrame(r, buf)
			if err != nil {
				break
			}
			again, buf = appendFrame(again, kind, data), data
		}
		if !bytes.HasPrefix(b, again) {
			t.Errorf("%x was read as %x", b, again)
		}
	})
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x0d{\"op\":\"list\"}"))
	f.Add([]byte("\x00\x40\x00\x01{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4 {
			return
		}
		var r request
		if err := readBody(bytes.NewReader(b[4:]), [4]byte(b), &r); err == nil && r.Start != nil {
			newLaunch(r.ID, r.Start, nil)
		}
	})
}

func FuzzRecords(f *testing.F) {
	f.Add(appendRecords(nil, someTime, streamStdout, []byte("a line\nand a part")))
	f.Add([]byte("2026-01-02T03:04:05.000000006Z stdout F \n\nx"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Whatever a guest writes comes back as it was.
		var got []byte
		for line := range bytes.Lines(appendRecords(nil, someTime, streamStderr, b)) {
			rec, ok := parseRecord(bytes.TrimSuffix(line, []byte{'\n'}))
			if !ok || !rec.time.Equal(someTime) || rec.stream != streamStderr {
				t.Fatalf("%q is no record", line)
			}
			got = append(got, rec.entry().Data...)
		}
		if diff := cmp.Diff(b, got); diff != "" && len(b) > 0 {
			t.Error(diff)
		}
		parseRecord(b)
	})
}

func FuzzProcStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte("1 (a) b) Z 1"))
	f.Fuzz(func(t *testing.T, b []byte) { parseProcStat(b) })
}
