package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestChangingWalls puts one guest behind each wall and back, in all six
// directions. Its files are the same each time, and what it deleted stays so.
func TestChangingWalls(t *testing.T) {
	h := newWalls(t)
	h.do("launch", "base", "g", "--kind", "container", "--label", "a=b", "--", "sleep", "100000")
	r := h.tryIn(bytes.NewReader(sampleTree(t)), "cp", "-a", "-", "g:/srv")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	h.do("exec", "g", "--", "sh", "-c", "rm -rf /etc/group; rm -rf /root; mkdir /root; touch /root/new; mv /srv/tree/dir /srv/tree/moved; echo changed >/etc/passwd")
	before, first := h.listing("g"), h.show("g")
	for _, kind := range []string{"pvm", "vm", "container", "vm", "pvm", "container"} {
		h.do("stop", "g", "--timeout", "1")
		h.do("set", "g", "kind="+kind)
		h.do("start", "g")
		in := h.show("g")
		if string(in.Spec.Kind) != kind || in.Status.NICs[0].MAC != first.Status.NICs[0].MAC || in.Status.NICs[0].IPv4 != first.Status.NICs[0].IPv4 || in.Labels["a"] != "b" {
			t.Errorf("%s: %+v", kind, in)
		}
		if d := cmp.Diff(before, h.listing("g")); d != "" {
			t.Errorf("as %s it has other files:\n%s", kind, d)
		}
		gone := h.do("exec", "g", "--", "sh", "-c", "ls -A /etc/group /srv/tree/dir 2>/dev/null; ls -A /root; cat /etc/passwd")
		if gone != "new\nchanged\n" {
			t.Errorf("as %s: %q", kind, gone)
		}
	}
	h.do("stop", "g", "--timeout", "1")
	h.do("copy", "g", "copy", "--kind", "vm")
	h.do("start", "copy")
	if d := cmp.Diff(before, h.listing("copy")); d != "" {
		t.Errorf("the copy has other files:\n%s", d)
	}
	if in := h.show("copy"); in.Status.NICs[0].MAC == first.Status.NICs[0].MAC || in.Status.NICs[0].IPv4 == first.Status.NICs[0].IPv4 {
		t.Errorf("the copy has its origin's addresses: %+v", in.Status.NICs)
	}
	h.refused("running", "set", "copy", "kind=container")
	h.refused("running", "copy", "copy", "other")
}

// sampleTree has every sort of file that a guest may get by cp.
func sampleTree(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	when := time.Unix(1234567890, 123456789)
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) // CAP_NET_BIND_SERVICE, version 2
	for _, e := range []struct {
		tar.Header
		content string
	}{
		{tar.Header{Name: "tree/", Typeflag: tar.TypeDir, Mode: 0o751, Uid: 3, Gid: 4}, ""},
		{tar.Header{Name: "tree/dir/", Typeflag: tar.TypeDir, Mode: 0o2775, PAXRecords: map[string]string{"SCHILY.xattr.user.dir": "yes"}}, ""},
		{tar.Header{Name: "tree/dir/file", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 1000, Gid: 2000}, "some content"},
		{tar.Header{Name: "tree/hard", Typeflag: tar.TypeLink, Linkname: "tree/dir/file"}, ""},
		{tar.Header{Name: "tree/setuid", Typeflag: tar.TypeReg, Mode: 0o4755}, "x"},
		{tar.Header{Name: "tree/capable", Typeflag: tar.TypeReg, Mode: 0o755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.name": "value"}}, "y"},
		{tar.Header{Name: "tree/link", Typeflag: tar.TypeSymlink, Linkname: "../no/where", Uid: 7, Gid: 8}, ""},
		{tar.Header{Name: "tree/fifo", Typeflag: tar.TypeFifo, Mode: 0o622}, ""},
		{tar.Header{Name: "tree/.wh.name", Typeflag: tar.TypeReg, Mode: 0o600}, ""},
	} {
		h := e.Header
		h.Format, h.ModTime, h.Size = tar.FormatPAX, when, int64(len(e.content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, e.content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// listing describes all files of a guest's tree.
func (h *host) listing(name string) []string {
	h.t.Helper()
	r := tar.NewReader(strings.NewReader(h.do("cp", "-a", name+":/srv/tree", "-")))
	var list []string
	links := map[string][]string{} // names of one file, whichever came first
	for {
		e, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			h.t.Fatal(err)
		}
		if e.Typeflag == tar.TypeLink {
			links[e.Linkname] = append(links[e.Linkname], e.Name)
			continue
		}
		sum := sha256.New()
		_, _ = io.Copy(sum, r)
		line := fmt.Sprintf("%c %o %d:%d %s %q", e.Typeflag, e.Mode, e.Uid, e.Gid, e.Linkname, sum.Sum(nil)[:4])
		if e.Typeflag != tar.TypeDir { // the move has changed theirs
			line += e.ModTime.UTC().Format(time.RFC3339Nano)
		}
		for _, k := range slices.Sorted(maps.Keys(e.PAXRecords)) {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				line += fmt.Sprintf(" %s=%x", k, e.PAXRecords[k])
			}
		}
		links[e.Name] = append(links[e.Name], e.Name)
		list = append(list, e.Name+" "+line)
	}
	for i, line := range list {
		first, rest, _ := strings.Cut(line, " ")
		slices.Sort(links[first])
		list[i] = strings.Join(links[first], "=") + " " + rest
	}
	slices.Sort(list)
	return list
}
