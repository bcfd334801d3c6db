package guest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

func testAccounts(t testing.TB, passwd, group string) accounts {
	t.Helper()
	a := accounts{filepath.Join(t.TempDir(), "passwd"), filepath.Join(t.TempDir(), "group")}
	for name, content := range map[string]string{a.passwd: passwd, a.group: group} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func TestFindUser(t *testing.T) {
	long := strings.Repeat("x", 2*maxLine)
	a := testAccounts(t,
		"root:x:0:0:root:/root:/bin/sh\n# comment:x:7:7::/:\n\nbroken:x\nbad:x:a:b::/:\nneg:x:-1:0::/:\n"+
			"none:x:4294967295:0::/:\n"+long+":x:5:5::/:\nweb:x:33:44:Web:/var/www:/bin/false\nnohome:x:50:50:::\n12:x:1200:1200::/twelve:\nlast:x:60:60::/last:",
		"root:x:0:\nwww:x:44:web\nextra:x:100:other,web\nmore:x:101:web,other\nnot:x:102:webby\nbad:x:z:web\n55:x:5500:\n")
	for _, tc := range []struct {
		spec string
		want account
		ok   bool
	}{
		{"", account{0, 0, nil, "root", "/root"}, true},
		{"root", account{0, 0, nil, "root", "/root"}, true},
		{"web", account{33, 44, []uint32{100, 101}, "web", "/var/www"}, true},
		{"33", account{33, 44, []uint32{100, 101}, "web", "/var/www"}, true},
		{"web:www", account{33, 44, nil, "web", "/var/www"}, true},
		{"web:101", account{33, 101, nil, "web", "/var/www"}, true},
		{"web:", account{33, 44, []uint32{100, 101}, "web", "/var/www"}, true},
		{":www", account{0, 44, nil, "root", "/root"}, true},
		{"nohome", account{50, 50, nil, "nohome", "/"}, true},
		{"last", account{60, 60, nil, "last", "/last"}, true},
		{"4000", account{4000, 0, nil, "", "/"}, true},
		{"4000:4001", account{4000, 4001, nil, "", "/"}, true},
		{"12", account{1200, 1200, nil, "12", "/twelve"}, true}, // a name first
		{"0:55", account{0, 5500, nil, "root", "/root"}, true},
		{spec: "nobody-here"},
		{spec: "web:nogroup"},
		{spec: "none"},
		{spec: "bad"},
		{spec: "-1"},
		{spec: "4294967295"},
		{spec: "0:-1"},
		{spec: "broken"},
		{spec: "web:www:x"},
	} {
		got, err := a.find(tc.spec)
		if (err == nil) != tc.ok {
			t.Errorf("%q: %+v, %v", tc.spec, got, err)
		} else if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(account{})); tc.ok && diff != "" {
			t.Errorf("%q: %s", tc.spec, diff)
		}
		if err != nil && api.AsError(err).Field != "user" {
			t.Errorf("%q: field %q: %v", tc.spec, api.AsError(err).Field, err)
		}
	}
}

func TestFindUserWithoutFiles(t *testing.T) {
	a := accounts{"/no/such/passwd", "/no/such/group"}
	got, err := a.find("7:8")
	if diff := cmp.Diff(account{7, 8, nil, "", "/"}, got, cmp.AllowUnexported(account{})); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if _, err := a.find("name"); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("got %v", err)
	}
}

// The files are the guest's: a FIFO must not block its agent.
func TestFindUserRefusesWhatIsNoFile(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "passwd")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := (accounts{fifo, "/etc/group"}).find("root"); err == nil {
		t.Error("a FIFO was read")
	}
}

func FuzzScanLines(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/sh\n#c\n\n:::::::\n"))
	f.Add(bytes.Repeat([]byte("a:"), 5000))
	f.Add(bytes.Repeat([]byte("a:"), 2048)) // as long as a buffer, and no newline
	f.Fuzz(func(t *testing.T, in []byte) {
		want := 0
		for line := range bytes.SplitSeq(in, []byte("\n")) {
			line = bytes.TrimSpace(line)
			if len(line) > 0 && line[0] != '#' && bytes.Count(line, []byte(":")) >= 3 {
				want++
			}
		}
		got := 0
		err := scanLines(bytes.NewReader(in), 4, func(fields [][]byte) bool {
			got++
			return true
		})
		if err != nil || got != want {
			t.Errorf("%d lines, want %d, %v", got, want, err)
		}
	})
}

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]unix.Signal{
		"SIGTERM": 15, "term": 15, "Int": 2, "9": 9, "64": 64, "SIGRTMIN": 34, "RTMIN+3": 37, "sigrtmax-1": 63, "RTMAX": 64, "SIGIO": 29,
		"": 0, "0": 0, "65": 0, "-1": 0, "SIG": 0, "RTMIN+31": 0, "RTMIN-1": 0, "RTMAX+1": 0, "RTMINx": 0, "SIGSIGTERM": 0,
	} {
		got, ok := parseSignal(name)
		if ok != (want != 0) || ok && got != want {
			t.Errorf("%q: %v, %v", name, got, ok)
		}
	}
}
