package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestEmulatorFlushesAndForces has QEMU's own client write to a disk.
func TestEmulatorFlushesAndForces(t *testing.T) {
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skipf("needs qemu-io: %v (install qemu-utils)", err)
	}
	d := open(t, 8<<20)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client := func(commands ...string) {
		t.Helper()
		served := make(chan error, 1)
		go func() {
			conn, err := l.Accept()
			if err == nil {
				err = d.Serve(conn)
			}
			served <- err
		}()
		// Writes wait for a flush in the client's cache mode, which then
		// comes with the end: so the end is a kill.
		args := []string{"-t", "writeback", "-f", "raw", "nbd+unix:///?socket=" + socket}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := exec.CommandContext(ctx, "qemu-io", args...)
		c.Stdin = strings.NewReader(strings.Join(append(commands, "abort\n"), "\n"))
		out, _ := c.CombinedOutput()
		if err := <-served; err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		for _, bad := range []string{"failed", "error", "cannot"} {
			if strings.Contains(string(out), bad) {
				t.Errorf("qemu-io said:\n%s", out)
			}
		}
	}
	client("write -P 1 0 64k", "flush", "write -P 2 0 4k", "write -f -P 3 1M 4k", "write -P 4 2M 4k", "read -P 2 0 4k", "read -P 1 4k 60k")
	if lost := d.LosePower(); lost != 8<<10 {
		t.Errorf("lost %d bytes, 8 KiB were not safe", lost)
	}
	client("read -P 1 0 64k", "read -P 3 1M 4k", "read -P 0 2M 4k", "write -z 0 32k", "discard 1M 4k", "read -P 0 0 32k", "read -P 1 32k 32k")
	want(t, d, 0, 0, 32<<10)
	want(t, d, 1<<20, 0, 4<<10)
}

// FuzzServe: no bytes of a client end the disk or make it larger.
func FuzzServe(f *testing.F) {
	hello := binary.BigEndian.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	option := func(n uint32, data string) []byte {
		b := binary.BigEndian.AppendUint64(bytes.Clone(hello), magicOption)
		b = binary.BigEndian.AppendUint32(b, n)
		return append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
	}
	ask := func(kind, flags uint16, off uint64, n uint32) []byte {
		b := binary.BigEndian.AppendUint32(nil, magicRequest)
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint16(b, kind)
		b = binary.BigEndian.AppendUint64(b, 7)
		b = binary.BigEndian.AppendUint64(b, off)
		return binary.BigEndian.AppendUint32(b, n)
	}
	start := option(optGo, "\x00\x00\x00\x00\x00\x00")
	f.Add(start)
	f.Add(append(option(optExportName, "x"), ask(cmdRead, 0, 0, 512)...))
	f.Add(append(bytes.Clone(start), append(ask(cmdWrite, cmdFlagFUA, 512, 512), make([]byte, 512)...)...))
	f.Add(append(bytes.Clone(start), append(ask(cmdFlush, 0, 0, 0), ask(cmdWriteZeroes, 0, 1<<63, 1<<31)...)...))
	f.Add(append(bytes.Clone(start), ask(cmdTrim, 0, 0, 1<<20)...))
	f.Add(option(optInfo, ""))
	path := filepath.Join(f.TempDir(), "disk")
	d, err := Open(path, 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	defer d.Close()
	f.Fuzz(func(t *testing.T, in []byte) {
		ours, theirs := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = d.Serve(ours)
		}()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		_, _ = theirs.Write(in)
		theirs.Close()
		<-served
		if st, err := d.medium.Stat(); err != nil || st.Size() != 1<<20 {
			t.Errorf("the disk became %d bytes: %v", st.Size(), err)
		}
	})
}
