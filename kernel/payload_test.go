package kernel

import (
	"bytes"
	"encoding/binary"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// lz4Frame packs by the host's lz4, as Linux's makefile does.
func lz4Frame(t testing.TB, content []byte) []byte {
	t.Helper()
	c := exec.Command("lz4", "-l", "-9", "-c")
	c.Stdin = bytes.NewReader(content)
	out, err := c.Output()
	if err != nil {
		t.Skipf("needs lz4: %v", err)
	}
	return binary.LittleEndian.AppendUint32(out, uint32(len(content)))
}

func TestLZ4IsUnpacked(t *testing.T) {
	for name, content := range map[string][]byte{
		"short":    []byte("hello"),
		"repeated": bytes.Repeat([]byte("abc"), 100_000),
		"zeros":    make([]byte, 1<<20),
		"blocks":   []byte(strings.Repeat("0123456789abcdef", 3<<19)), // three of them
	} {
		got, err := io.ReadAll(newLZ4Reader(bytes.NewReader(lz4Frame(t, content))))
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(content), err)
		}
	}
}

// TestLZ4ByHand reads blocks that show the format's corners.
func TestLZ4ByHand(t *testing.T) {
	for _, c := range []struct {
		name, in, want string
		bad            bool
	}{
		{"literals", "\x50hello", "hello", false},
		{"long literals", "\xf0\x01" + strings.Repeat("x", 16), strings.Repeat("x", 16), false},
		{"overlap", "\x14a\x01\x00\x10b", "aaaaaaaaab", false},
		{"long match", "\x1fa\x01\x00\x02\x10b", strings.Repeat("a", 22) + "b", false},
		{"offset before the start", "\x14a\x02\x00", "", true},
		{"offset 0", "\x14a\x00\x00", "", true},
		{"short literals", "\x50hell", "", true},
		{"no offset", "\x14a\x01", "", true},
		{"endless length", "\x1fa\x01\x00" + strings.Repeat("\xff", 40000), "", true},
		{"length cut", "\xf0\xff", "", true},
	} {
		out, err := unpackLZ4(make([]byte, 0, lz4Block), []byte(c.in))
		if (err != nil) != c.bad || !c.bad && string(out) != c.want {
			t.Errorf("%s: %.40q, %v", c.name, out, err)
		}
	}
}

func FuzzLZ4(f *testing.F) {
	f.Add([]byte(lz4Magic + "\x06\x00\x00\x00\x50hello\x05\x00\x00\x00"))
	f.Add([]byte(lz4Magic + "\x07\x00\x00\x00\x14a\x01\x00\x10b\x00"))
	f.Add([]byte(lz4Magic + "\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = io.Copy(io.Discard, newLZ4Reader(bytes.NewReader(b)))
	})
}
