// Package probe is what `cleave verify` runs inside a guest and outside of
// it: questions about what a program can rely on, work whose time is
// measured, and attempts to take more than a guest may have. It knows nothing
// of the platform, only of Linux.
package probe

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Answer is what one question found out, in a few words that are the same
// wherever the same thing holds.
type Answer struct {
	Area string `json:"area"`
	Name string `json:"name"`
	Text string `json:"text"`
}

// check is one question. It gets an empty directory and answers, or says which
// error it met: an answer too.
type check struct {
	name string
	ask  func(dir string) (string, error)
}

// areas are the questions by area, in the order in which they are asked.
var areas = []struct {
	name   string
	checks []check
}{
	{"system calls", systemCalls},
	{"files", files},
	{"signals", signals},
	{"clocks", clocks},
	{"network", networks},
	{"/proc", procs},
}

// Ask asks every question. Each gets a directory of its own below dir.
func Ask(dir string) ([]Answer, error) {
	var out []Answer
	for _, a := range areas {
		for _, c := range a.checks {
			d, err := os.MkdirTemp(dir, "probe")
			if err != nil {
				return nil, err
			}
			text, err := c.ask(d)
			if err != nil {
				text = describe(err)
			}
			out = append(out, Answer{Area: a.name, Name: c.name, Text: text})
			if err := os.RemoveAll(d); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// describe names an error by its number where it has one, without paths,
// which differ.
func describe(err error) string {
	var no unix.Errno
	if errors.As(err, &no) {
		return "error " + unix.ErrnoName(no)
	}
	return "error: " + err.Error()
}

// is words whether something holds.
func is(holds bool) (string, error) {
	if holds {
		return "yes", nil
	}
	return "no", nil
}

// fails words the error that is expected.
func fails(err error) (string, error) {
	if err == nil {
		return "works", nil
	}
	return "", err
}

// count words a number.
func count(n int) (string, error) { return fmt.Sprint(n), nil }
