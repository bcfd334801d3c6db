package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
)

func TestErrorsCallObjectsWhatUsersDo(t *testing.T) {
	w := newWorld(t)
	in := w.launch("web", spec())
	v, err := w.c.CreateVolume(t.Context(), &api.Volume{Meta: api.Meta{Name: "data"}})
	if err != nil {
		t.Fatal(err)
	}
	n, err := w.c.Network(t.Context(), "", "default")
	if err != nil {
		t.Fatal(err)
	}
	for said, want := range map[string]string{
		"guest " + in.ID + ": its agent doesn't answer":               "guest web: its agent doesn't answer",
		"network " + n.ID + " isn't on this host":                     "network default isn't on this host",
		fmt.Sprintf("mount volume %q: busy", namedVolume(v.ID)):       `mount volume "data": busy`,
		fmt.Sprintf("mount volume %q: busy", rootVolume(in)):          `mount volume "root of web": busy`,
		fmt.Sprintf("mount volume %q: busy", "i-"+in.ID+"-2"):         `mount volume "root of web": busy`,
		"open /run/cleave/vm/" + in.ID + "/control.img: it is gone":   "open /run/cleave/vm/" + in.ID + "/control.img: it is gone",
		"pools/v-" + v.ID + "/x":                                      "pools/v-" + v.ID + "/x",
		"a file system of " + in.ID + " and " + v.ID + ", filesystem": "a file system of web and data, filesystem",
		"nothing": "nothing",
	} {
		if got := w.c.naming(errors.New(said)); api.AsError(got).Message != want {
			t.Errorf("%q became %q", said, got)
		}
	}
	wrapped := w.c.naming(fmt.Errorf("guest %s: %w", in.ID, api.Errorf(api.CodeBusy, "no: %w", context.Canceled)))
	if !api.IsCode(wrapped, api.CodeBusy) || !errors.Is(wrapped, context.Canceled) || w.c.naming(nil) != nil {
		t.Error(wrapped)
	}
}

// What engines and networks say reaches users with names, by whichever way.
func TestFailuresReachUsersWithNames(t *testing.T) {
	w := newWorld(t)
	in := w.launch("web", spec())
	check := func(what string, err error) {
		t.Helper()
		if err == nil || strings.Contains(err.Error(), in.ID) || !strings.Contains(err.Error(), "web") {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.eng.set(func() {
		w.eng.failUpdate = api.Errorf(api.CodeInvalid, "guest %s has too little", in.ID)
		w.eng.failStart = fmt.Errorf("start guest %s: no", in.ID)
	})
	w.eng.set(func() { w.eng.consoles = true })
	con, _, err := w.c.Console(t.Context(), "", "web", ConsoleOptions{})
	if err != nil {
		t.Fatal(err)
	}
	check("the size of its terminal", con.Resize(80, 24))
	_, err = con.Exit(t.Context())
	check("its end", err)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("its end has another reason: %v", err)
	}
	check("update", w.patch("web", `{"spec":{"resources":{"memory":"64MiB"}}}`).Error)
	w.power("web", "stop")
	check("start", w.power("web", "start").Error)
	check("status", w.c.instances.ByID(in.ID).Status.Error)
	for _, e := range w.events("instance.failed") {
		check("event", errors.New(e))
	}
}
