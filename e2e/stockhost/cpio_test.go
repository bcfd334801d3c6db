package stockhost

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestArchiveIsPaddedAndHasDirectoriesFirst(t *testing.T) {
	var b bytes.Buffer
	c := &cpio{w: &b}
	c.file("a/b", 0o755, []byte("hello"))
	c.file("a/c", 0o644, nil)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	const zero = "00000000"
	entry := func(ino, mode, size, name string, data string) string {
		n := map[int]string{2: "00000002", 4: "00000004", 11: "0000000b"}[len(name)+1]
		return "070701" + ino + mode + zero + zero + "00000001" + zero + size + zero + zero + zero + zero + n + zero + name + "\x00" + data
	}
	want := entry("00000001", "000041ed", zero, "a", "") + // 112 bytes
		entry("00000002", "000081ed", "00000005", "a/b", "\x00\x00hello\x00\x00\x00") +
		entry("00000003", "000081a4", zero, "a/c", "\x00\x00") +
		entry("00000004", zero, zero, "TRAILER!!!", "\x00\x00\x00")
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}
