// Package progress shows how far long work has come: a bar per task that is
// redrawn in place on a terminal, plain lines elsewhere. Work that ends
// within a moment leaves no trace.
//
// A Reporter may be used from several goroutines. It draws when it is told
// something new, at most ten times a second; only Repeat starts a goroutine.
package progress

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
)

const (
	redraw            = 100 * time.Millisecond // least time between two drawings
	repeat            = 5 * time.Second        // least time between two lines about one step
	again             = time.Second            // between two looks at work that tells nothing
	longBar, shortBar = 20, 10                 // the short one below 100 columns
	// itemsAtMost tells counts of bytes from counts of items.
	itemsAtMost = 10000
)

// State is where a task stands.
type State struct {
	Title string // like "image.pull debian:bookworm"
	Step  string
	Done  int64 // bytes or items
	Total int64 // 0 while unknown
}

// Of describes an operation.
func Of(op *api.Operation) State {
	return State{Title: op.Verb + " " + op.Target, Step: op.Step, Done: op.Done, Total: op.Total}
}

// Reporter shows the progress of one or more tasks.
type Reporter struct {
	w     io.Writer
	width int // of the terminal; 0: plain lines
	now   func() time.Time

	mu    sync.Mutex
	start time.Time
	delay time.Duration
	drawn time.Time
	lines int // drawn on the terminal
	tasks []*task
}

type task struct {
	key string
	State
	begun    time.Time // with a total known
	base     int64
	reported time.Time
	step     string
}

// New makes a reporter that writes to p's writer, and only once delay has
// passed.
func New(p *output.Printer, delay time.Duration) *Reporter {
	return &Reporter{w: p.W, width: p.Width, now: time.Now, start: time.Now(), delay: delay}
}

// Update tells where the task named key stands.
func (r *Reporter) Update(key string, s State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.find(key)
	if s.Total != t.Total || s.Step != t.Step {
		t.begun, t.base = r.now(), s.Done
	}
	t.State = s
	switch now := r.now(); {
	case now.Sub(r.start) < r.delay:
	case r.width == 0:
		r.line(t, now)
	case now.Sub(r.drawn) >= redraw:
		r.draw(now)
	}
}

func (r *Reporter) find(key string) *task {
	for _, t := range r.tasks {
		if t.key == key {
			return t
		}
	}
	t := &task{key: key, begun: r.now()}
	r.tasks = append(r.tasks, t)
	return t
}

// Finish removes a task's bar.
func (r *Reporter) Finish(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, t := range r.tasks {
		if t.key == key {
			r.tasks = append(r.tasks[:i], r.tasks[i+1:]...)
			break
		}
	}
	if r.lines > 0 {
		r.draw(r.now())
	}
}

// Close removes all bars.
func (r *Reporter) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tasks = nil
	if r.lines > 0 {
		r.draw(r.now())
	}
}

// line writes a plain line when there is news.
func (r *Reporter) line(t *task, now time.Time) {
	if t.step == t.Step && (now.Sub(t.reported) < repeat || t.Total == 0) {
		return
	}
	t.step, t.reported = t.Step, now
	text := t.Title
	if t.Step != "" {
		text += ": " + t.Step
	}
	if t.Total > 0 {
		text += " " + t.amount()
	}
	fmt.Fprintln(r.w, output.Clean(text))
}

// draw draws all bars over those drawn before, in one write.
func (r *Reporter) draw(now time.Time) {
	var b strings.Builder
	if r.lines > 0 {
		fmt.Fprintf(&b, "\r\x1b[%dA", r.lines)
	}
	for _, t := range r.tasks {
		b.WriteString(t.bar(now, r.width-1) + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	fmt.Fprint(r.w, b.String())
	r.lines, r.drawn = len(r.tasks), now
}

// bar is one line of at most width columns: where room is short, the words
// give way to the figures.
func (t *task) bar(now time.Time, width int) string {
	words := t.Title
	if t.Step != "" {
		words += "  " + t.Step
	}
	figures := ""
	switch {
	case t.Total > 0:
		length := int64(longBar)
		if width < 100 {
			length = shortBar
		}
		full := int(min(t.Done, t.Total) * length / t.Total)
		figures = "  [" + strings.Repeat("#", full) + strings.Repeat(".", int(length)-full) + "] " + t.amount() + t.speed(now)
	case t.Done > 0:
		figures = "  " + quantity(t.Done, t.Done) + t.speed(now)
	}
	room := max(width-len(figures), 10)
	return output.Shorten(output.Shorten(output.Clean(words), room)+figures, width)
}

// amount prints how much of how much.
func (t *task) amount() string {
	return fmt.Sprintf("%3d%%  %s/%s", min(t.Done, t.Total)*100/t.Total, quantity(t.Done, t.Total), quantity(t.Total, t.Total))
}

// speed prints bytes per second and the time left, once there is enough to
// tell.
func (t *task) speed(now time.Time) string {
	d := now.Sub(t.begun).Seconds()
	if d < 0.5 || t.Done <= t.base || max(t.Done, t.Total) <= itemsAtMost {
		return ""
	}
	perSecond := float64(t.Done-t.base) / d
	text := "  " + api.Bytes(perSecond).String() + "/s"
	if left := float64(t.Total-t.Done) / perSecond; t.Total > 0 && left >= 1 {
		text += "  " + output.Span(time.Duration(left*float64(time.Second))) + " left"
	}
	return text
}

func quantity(n, of int64) string {
	if of <= itemsAtMost {
		return fmt.Sprint(n)
	}
	return api.Bytes(n).String()
}

// Reader counts what is read through it as the progress of a task.
func (r *Reporter) Reader(from io.Reader, key string, s State) io.Reader {
	return &counter{Reader: from, r: r, key: key, s: s}
}

type counter struct {
	io.Reader
	r   *Reporter
	key string
	s   State
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.s.Done += int64(n)
	c.r.Update(c.key, c.s)
	return n, err
}

// Repeat shows where a task stands from a moment on until stop is called: of
// work that tells nothing of itself. stop returns when that is over.
func (r *Reporter) Repeat(from <-chan struct{}, key string, s State) (stop func()) {
	over := make(chan struct{})
	var showing sync.WaitGroup
	showing.Go(func() {
		select {
		case <-from:
		case <-over:
			return
		}
		tick := time.NewTicker(again)
		defer tick.Stop()
		for {
			r.Update(key, s)
			select {
			case <-tick.C:
			case <-over:
				return
			}
		}
	})
	return sync.OnceFunc(func() { close(over); showing.Wait() })
}
