package store

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func volumes(t *testing.T, s *Store) *Collection[api.Volume, *api.Volume] {
	t.Helper()
	c, err := OpenCollection[api.Volume](t.Context(), s, "volume")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func volume(name string) *api.Volume {
	return &api.Volume{Meta: api.Meta{ID: NewID(), Project: "default", Name: name, Created: Now()}}
}

func TestObjectsSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	c := volumes(t, s)
	v := volume("data")
	v.Spec.Size = 5 * api.GiB
	if err := s.Commit(t.Context(), c.Create(v)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close()
	got, err := volumes(t, s).Get("default", "data")
	if err != nil || got.ID != v.ID || got.Spec.Size != v.Spec.Size || got.Revision != v.Revision {
		t.Fatalf("got %+v, %v; want %+v", got, err, v)
	}
}

func TestNamesAreUniqueAndMoveWithARename(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	c := volumes(t, s)
	a, b := volume("a"), volume("b")
	if err := s.Commit(t.Context(), c.Create(a), c.Create(b)); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), c.Create(volume("a"))); !api.IsCode(err, api.CodeExists) {
		t.Errorf("second a: %v", err)
	}
	rename := func(id, to string) error {
		_, err := c.Update(t.Context(), id, func(v *api.Volume) error { v.Name = to; return nil })
		return err
	}
	if err := rename(a.ID, "b"); !api.IsCode(err, api.CodeExists) {
		t.Errorf("a to b: %v", err)
	}
	if err := rename(a.ID, "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get("default", "a"); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("old name: %v", err)
	}
	if err := s.Commit(t.Context(), c.Create(volume("a"))); err != nil {
		t.Errorf("the old name is not free: %v", err)
	}
}

func TestStaleWritesAreRefusedWhole(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	c := volumes(t, s)
	v, w := volume("v"), volume("w")
	if err := s.Commit(t.Context(), c.Create(v)); err != nil {
		t.Fatal(err)
	}
	stale := c.Clone(v)
	if _, err := c.Update(t.Context(), v.ID, func(v *api.Volume) error { v.Spec.Size = 1; return nil }); err != nil {
		t.Fatal(err)
	}
	err := s.Commit(t.Context(), c.Create(w), c.Put(stale))
	if !api.IsCode(err, api.CodeConflict) {
		t.Errorf("stale put: %v", err)
	}
	if c.ByID(w.ID) != nil {
		t.Error("half of a refused commit took effect")
	}
}

func TestRacingUpdatesAllCount(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	c := volumes(t, s)
	v := volume("v")
	if err := s.Commit(t.Context(), c.Create(v)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				if _, err := c.Update(t.Context(), v.ID, func(v *api.Volume) error { v.Spec.Size++; return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := c.ByID(v.ID).Spec.Size; got != 40 {
		t.Errorf("size %d after 40 increments", got)
	}
}

func TestUpdateReturnsTheFunctionsOwnError(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	c := volumes(t, s)
	v := volume("v")
	if err := s.Commit(t.Context(), c.Create(v)); err != nil {
		t.Fatal(err)
	}
	calls := 0
	_, err := c.Update(t.Context(), v.ID, func(*api.Volume) error {
		calls++
		return api.Errorf(api.CodeConflict, "not now")
	})
	if calls != 1 || err == nil || err.Error() != "not now" {
		t.Errorf("%d calls, error %v", calls, err)
	}
}

func TestForeignChangesArriveAndOwnOnesOnce(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	here, there := volumes(t, s), volumes(t, s)
	type change struct{ old, now string }
	seen := make(chan change, 100)
	name := func(v *api.Volume) string {
		if v == nil {
			return ""
		}
		return v.Name
	}
	here.OnChange(func(old, now *api.Volume) { seen <- change{name(old), name(now)} })
	own, foreign := volume("own"), volume("foreign")
	if err := s.Commit(t.Context(), here.Create(own)); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), here.Delete(own)); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), there.Create(foreign)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []change{{"", "own"}, {"own", ""}, {"", "foreign"}} {
		select {
		case got := <-seen:
			if got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("no change %v", want)
		}
	}
	if len(seen) > 0 || here.Len() != 1 {
		t.Errorf("%d more changes, %d objects", len(seen), here.Len())
	}
}

// TestFullDiskRefusesBeforeEtcdDies fills the state's disk: writes must fail
// with no-space while reads and the process go on, and work again after.
func TestFullDiskRefusesBeforeEtcdDies(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("cleave-test", dir, "tmpfs", 0, "size=500m"); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := open(t, filepath.Join(dir, "state"))
	defer s.Close()
	c := volumes(t, s)
	v := volume("v")
	if err := s.Commit(t.Context(), c.Create(v)); err != nil {
		t.Fatal(err)
	}
	ballast := fill(t, dir, reserveLeast/2)
	if err := s.Commit(t.Context(), c.Create(volume("w"))); !api.IsCode(err, api.CodeNoSpace) {
		t.Errorf("create on a full disk: %v", err)
	}
	if err := s.Commit(t.Context(), c.Create(volume("x")).Always()); err != nil {
		t.Errorf("the reserve is no help: %v", err)
	}
	if _, err := c.Get("default", "v"); err != nil {
		t.Error(err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), c.Create(volume("w"))); err != nil {
		t.Errorf("after space was freed: %v", err)
	}
}

// fill makes a file that leaves no more than so many bytes free, whatever
// etcd takes or gives back meanwhile: it makes log segments in advance.
func fill(t *testing.T, dir string, leave int64) (file string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := int64(0); ; {
		free, err := freeBytes(dir)
		if err != nil {
			t.Fatal(err)
		}
		if free <= leave {
			return f.Name()
		}
		switch err := unix.Fallocate(int(f.Fd()), 0, size, free-leave); err {
		case nil:
			size += free - leave
		case unix.ENOSPC, unix.EINTR: // which leaves the file as it was
		default:
			t.Fatal(err)
		}
	}
}

func TestNoTCPPortIsOpened(t *testing.T) {
	before := listeners(t)
	s := open(t, t.TempDir())
	defer s.Close()
	if after := listeners(t); after > before {
		t.Errorf("%d listening TCP sockets before, %d with the store open", before, after)
	}
}

// listeners counts the process's own listening TCP sockets.
func listeners(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range fds {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil {
			continue
		}
		on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil || on == 0 {
			continue
		}
		if sa, err := unix.Getsockname(fd); err == nil {
			switch sa.(type) {
			case *unix.SockaddrInet4, *unix.SockaddrInet6:
				n++
			}
		}
	}
	return n
}

func TestListenersSeesATCPPort(t *testing.T) {
	before := listeners(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if listeners(t) != before+1 {
		t.Error("the count doesn't see a listening port")
	}
}

func BenchmarkCommit(b *testing.B) {
	s, err := Open(context.Background(), Options{Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	c, err := OpenCollection[api.Volume](context.Background(), s, "volume")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for i := 0; b.Loop(); i++ {
		if err := s.Commit(context.Background(), c.Create(volume(fmt.Sprint("v", i)))); err != nil {
			b.Fatal(err)
		}
	}
}
