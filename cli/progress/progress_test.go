package progress

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/google/go-cmp/cmp"
)

func pull(step string, done, total int64) State {
	return Of(&api.Operation{Verb: "image.pull", Target: "debian:bookworm", Step: step, Done: done, Total: total})
}

func TestPlainLinesTellStepsNotBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		r := New(&output.Printer{W: &b}, 0)
		for i := range int64(100) {
			r.Update("a", pull("downloading", i<<20, 100<<20))
			time.Sleep(60 * time.Millisecond)
		}
		r.Update("a", pull("extracting\x1b[2J", 0, 0))
		r.Close()
		want := `image.pull debian:bookworm: downloading   0%  0B/100MiB
image.pull debian:bookworm: downloading  84%  84MiB/100MiB
image.pull debian:bookworm: extracting\x1b[2J
`
		if diff := cmp.Diff(want, b.String()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestShortWorkLeavesNoTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, width := range []int{0, 80} {
			var b bytes.Buffer
			r := New(&output.Printer{W: &b, Width: width}, time.Second)
			for range 9 {
				r.Update("a", pull("downloading", 1<<20, 100<<20))
				time.Sleep(100 * time.Millisecond)
			}
			r.Close()
			if b.Len() != 0 {
				t.Errorf("width %d: %q", width, b.String())
			}
		}
	})
}

func TestBarsAreRedrawnInPlaceAndFitTheTerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		r := New(&output.Printer{W: &b, Width: 64}, 0)
		r.Update("a", pull("downloading", 0, 100<<20))
		time.Sleep(2 * time.Second)
		r.Update("a", pull("downloading", 50<<20, 100<<20))
		time.Sleep(time.Second)
		r.Update("b", State{Title: "instance.launch web", Step: "starting"})
		r.Finish("a")
		r.Close()
		want := "image.pull debian:bookworm  down…  [..........]   0%  0B/100MiB\x1b[K\n\x1b[J" +
			"\r\x1b[1Aimage.pull …  [#####.....]  50%  50MiB/100MiB  25MiB/s  2s left\x1b[K\n\x1b[J" +
			"\r\x1b[1Aimage.pul…  [#####.....]  50%  50MiB/100MiB  16.7MiB/s  3s left\x1b[K\ninstance.launch web  starting\x1b[K\n\x1b[J" +
			"\r\x1b[2Ainstance.launch web  starting\x1b[K\n\x1b[J" +
			"\r\x1b[1A\x1b[J"
		if diff := cmp.Diff(want, b.String()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestBarTellsSpeedAndTimeLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		r := New(&output.Printer{W: &b, Width: 200}, 0)
		r.Update("a", pull("downloading", 0, 100<<20))
		time.Sleep(2 * time.Second)
		r.Update("a", pull("downloading", 40<<20, 100<<20))
		if want := "] " + " 40%  40MiB/100MiB  20MiB/s  3s left"; !strings.Contains(b.String(), want) {
			t.Errorf("%q does not contain %q", b.String(), want)
		}
	})
}
