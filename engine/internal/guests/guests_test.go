package guests

import (
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// newBook is a book whose keeper tells of the ends in the channel.
func newBook(t *testing.T) (*Book, chan keeper.Guest) {
	t.Helper()
	b, err := Open(Options{
		Run: t.TempDir(), LogDir: func(string) string { return t.TempDir() }, Log: slog.New(slog.DiscardHandler),
		Status: keeper.Guest.Exit,
	})
	if err != nil {
		t.Fatal(err)
	}
	ends := make(chan keeper.Guest)
	b.watch.Go(func() { b.watchExits(ends) })
	t.Cleanup(func() {
		close(ends)
		b.Close()
	})
	return b, ends
}

func begin(t *testing.T, b *Book, id string) *Start {
	t.Helper()
	s, err := b.Begin(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(b.Dir(id), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	return s
}

func record(t *testing.T, b *Book, id string, pid int) {
	t.Helper()
	if err := b.Write(Record{ID: id, PID: pid, StartTime: uint64(pid)}); err != nil {
		t.Fatal(err)
	}
}

func ended(id string, pid, code int) keeper.Guest {
	return keeper.Guest{ID: id, PID: pid, StartTime: uint64(pid), Exited: true, ExitKnown: true, ExitCode: code}
}

// dead are numbers of processes that don't exist.
const dead = 1 << 30

func next(t *testing.T, b *Book) engine.Exit {
	t.Helper()
	select {
	case x := <-b.Exits():
		return x
	case <-time.After(30 * time.Second):
		t.Fatal("no end is told")
		return engine.Exit{}
	}
}

func TestEndDuringAStartIsToldAfterIt(t *testing.T) {
	for name, early := range map[string]bool{"before it is on record": true, "after": false} {
		t.Run(name, func(t *testing.T) {
			b, ends := newBook(t)
			s := begin(t, b, "g")
			if early {
				ends <- ended("g", dead, 3)
			}
			record(t, b, "g", dead)
			if !early {
				ends <- ended("g", dead, 3)
			}
			select {
			case <-s.Ended():
			case <-time.After(30 * time.Second):
				t.Fatal("its start doesn't hear of it")
			}
			select {
			case x := <-b.Exits():
				t.Errorf("%+v is told during the start", x)
			default:
			}
			s.Finish(true)
			if x := next(t, b); x.ID != "g" || x.Status != (api.ExitStatus{Code: 3}) {
				t.Errorf("told %+v", x)
			}
		})
	}
}

func TestLateEndOfAnEarlierGuestIsNotTheNextOnes(t *testing.T) {
	b, ends := newBook(t)
	s := begin(t, b, "g")
	ends <- ended("g", dead+1, 1) // the one before
	record(t, b, "g", dead)
	ends <- ended("g", dead+2, 2) // and one before that
	s.Finish(true)
	ends <- ended("other", 7, 7) // another engine's
	ends <- ended("g", dead, 5)
	if x := next(t, b); x.Status.Code != 5 {
		t.Errorf("told %+v", x)
	}
}

func TestFailedStartTellsNoEnd(t *testing.T) {
	b, ends := newBook(t)
	s := begin(t, b, "g")
	record(t, b, "g", dead)
	ends <- ended("g", dead, 5)
	s.Finish(false)
	s = begin(t, b, "g")
	record(t, b, "g", dead+1)
	s.Finish(true)
	ends <- ended("g", dead+1, 6)
	if x := next(t, b); x.Status.Code != 6 {
		t.Errorf("told %+v", x)
	}
}

func TestOneStartAtATimeAndNoneOfWhatLives(t *testing.T) {
	b, _ := newBook(t)
	s := begin(t, b, "g")
	if _, err := b.Begin("g"); !api.IsCode(err, api.CodeBusy) {
		t.Errorf("error %v", err)
	}
	own, err := StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Write(Record{ID: "g", PID: os.Getpid(), StartTime: own}); err != nil {
		t.Fatal(err)
	}
	s.Finish(true)
	if _, err := b.Begin("g"); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("error %v", err)
	}
}

func TestRecordIsReadByTheNextBook(t *testing.T) {
	b, _ := newBook(t)
	s := begin(t, b, "g")
	want := Record{ID: "g", PID: dead, StartTime: 4, System: true, Machine: &Machine{Memory: 5}}
	if err := b.Write(want); err != nil {
		t.Fatal(err)
	}
	s.Finish(true)
	begin(t, b, "cut-short")
	again, err := Open(b.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	got, err := again.Read("g")
	if err != nil || got.StartTime != 4 || !got.System || got.Machine == nil || got.Machine.Memory != 5 || got.Alive() {
		t.Errorf("record %+v, error %v", got, err)
	}
	if len(again.own) != 2 || again.own["g"] != (process{dead, 4}) {
		t.Errorf("own %+v", again.own)
	}
	if _, err := again.Read("cut-short"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}
