// Package enginetest is the conformance suite of engines: the same cases, by
// the same names, against any engine.Engine. A case is skipped only because
// the engine says in its capabilities that it can't.
//
// The suite talks to guests as the platform does: by their output, their
// exit status and their agent.
package enginetest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// Fixture is an engine under test and what it needs.
type Fixture struct {
	Engine engine.Engine
	// Image is a root file system with a POSIX shell and the usual tools in
	// /bin, and a user called "user" with id 1000.
	Image engine.Image
	// Volume makes an empty directory for a root or a volume.
	Volume func(t *testing.T) string
	// Machine is what a guest is made of that has a kernel of its own; nil for
	// one that has not.
	Machine *engine.Machine
	// Reopen closes the engine and opens another one in its place, as a
	// restarted daemon does.
	Reopen func(t *testing.T) engine.Engine
}

// suite is one run.
type suite struct {
	Fixture
	caps  engine.Capabilities
	exits *exits
}

// Run runs the suite.
func Run(t *testing.T, f Fixture) {
	caps, _ := f.Engine.Probe(t.Context())
	if !caps.Available {
		t.Skipf("engine %s: %v", f.Engine.Name(), caps.Reason)
	}
	s := &suite{Fixture: f, caps: caps, exits: watch(f.Engine)}
	for _, c := range []struct {
		name string
		test func(*suite, *testing.T)
	}{
		{"EntryPointRuns", (*suite).entryPointRuns},
		{"ExitStatusComesBack", (*suite).exitStatus},
		{"StartRefusesMissingProgram", (*suite).missingProgram},
		{"StartRefusesProgramThatCannotRun", (*suite).unrunnableProgram},
		{"StartRefusesMoreThanTheHostHas", (*suite).overHost},
		{"UserAndWorkDirAreResolvedInside", (*suite).userAndWorkDir},
		{"StandardInputReachesTheEntryPoint", (*suite).stdin},
		{"TerminalIsOne", (*suite).terminal},
		{"RootVolumeKeepsWritesAcrossStarts", (*suite).rootPersists},
		{"ReadOnlyRootRefusesWrites", (*suite).readOnlyRoot},
		{"VolumesAreMounted", (*suite).volumes},
		{"DiskVolumesAreMountedAndKeepWrites", (*suite).diskVolumes},
		{"HostnameAndFilesAreTheGuestsOwn", (*suite).hostFiles},
		{"SysctlsAndUlimitsAreSet", (*suite).sysctlsAndUlimits},
		{"SignalReachesTheEntryPoint", (*suite).signal},
		{"KillEndsEverything", (*suite).kill},
		{"PauseStopsAndResumeContinues", (*suite).pause},
		{"GuestGoesOnFromItsSavedMemory", (*suite).savedMemory},
		{"DisksTellWhatWasChanged", (*suite).trackedDisks},
		{"AgentExecutesBesideTheEntryPoint", (*suite).agentExec},
		{"AgentCarriesTreesBothWays", (*suite).agentFiles},
		{"MemoryLimitHolds", (*suite).memoryLimit},
		{"ProcessLimitHolds", (*suite).processLimit},
		{"LimitsChangeWhileRunning", (*suite).update},
		{"StatsCount", (*suite).stats},
		{"ListFindsGuestsOfAnEarlierDaemon", (*suite).reopen},
		{"EndIsKnownThatNoDaemonSaw", (*suite).endUnseen},
		{"CleanIsIdempotent", (*suite).cleanTwice},
		{"GuestsDoNotSeeEachOther", (*suite).strangers},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(s, t) })
	}
}

// exits keeps every end that an engine delivers.
type exits struct {
	mu   sync.Mutex
	seen map[string][]engine.Exit
	more chan struct{} // closed and replaced with every end
}

func watch(e engine.Engine) *exits {
	x := &exits{seen: map[string][]engine.Exit{}, more: make(chan struct{})}
	go func() { // ends when the engine is closed
		for exit := range e.Exits() {
			x.mu.Lock()
			x.seen[exit.ID] = append(x.seen[exit.ID], exit)
			close(x.more)
			x.more = make(chan struct{})
			x.mu.Unlock()
		}
	}()
	return x
}

// of waits for the end of a guest.
func (x *exits) of(t *testing.T, id string) engine.Exit {
	t.Helper()
	return x.nth(t, id, 1)
}

// nth waits for the n-th end of a guest.
func (x *exits) nth(t *testing.T, id string, n int) engine.Exit {
	t.Helper()
	deadline := time.After(hang)
	for {
		x.mu.Lock()
		got, more := x.seen[id], x.more
		x.mu.Unlock()
		if len(got) >= n {
			return got[n-1]
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("guest %s doesn't end", id)
		}
	}
}

var serial atomic.Uint32

// spec is a guest that runs a shell script.
func (s *suite) spec(t *testing.T, script string) *engine.Spec {
	n := serial.Add(1)
	spec := &engine.Spec{
		ID: "suite" + string(rune('a'+n/26%26)) + string(rune('a'+n%26)), Name: strings.ToLower(t.Name()),
		Project: "default", Hostname: "box", Epoch: 1,
		Image: s.Image, Root: engine.Root{Dir: s.Volume(t)},
		Proc:    engine.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}},
		UIDBase: 1<<20 + n<<16, IDCount: 1 << 16,
	}
	if s.Machine != nil {
		m := *s.Machine
		spec.Machine, spec.Root.Size = &m, 256*api.MiB
	}
	return spec
}

// some are as many of a case's variants as it is worth to boot for.
func some[T any](s *suite, variants ...T) []T {
	if s.Machine != nil {
		return variants[:1]
	}
	return variants
}

// start starts a guest that is forgotten after the test, by the engine that
// there is then.
func (s *suite) start(t *testing.T, spec *engine.Spec) *engine.Guest {
	t.Helper()
	g, err := s.Engine.Start(t.Context(), spec)
	if err != nil {
		t.Fatalf("start: %v\n%s", err, s.log(t, spec.ID))
	}
	t.Cleanup(func() { s.forget(t, spec.ID) })
	return g
}

func (s *suite) forget(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	if err := s.Engine.Forget(ctx, id); err != nil {
		t.Errorf("forget: %v", err)
	}
}

// run runs a guest to its end.
func (s *suite) run(t *testing.T, spec *engine.Spec) (string, api.ExitStatus) {
	t.Helper()
	s.start(t, spec)
	exit := s.exits.of(t, spec.ID)
	return s.log(t, spec.ID), exit.Status
}

// log is what the guest wrote.
func (s *suite) log(t *testing.T, id string) string {
	t.Helper()
	return Log(t, s.Engine, id)
}

// exec runs a command by the guest's agent, and returns all that it wrote.
func (s *suite) exec(t *testing.T, id string, command ...string) (string, int) {
	t.Helper()
	out, errs, code := Exec(t, s.Engine, id, command...)
	return out + errs, code
}

// wants checks that an error has a code and names something.
func wants(t *testing.T, err error, code api.Code, text string) {
	t.Helper()
	var e *api.Error
	switch {
	case err == nil:
		t.Error("no error")
	case !errors.As(err, &e) || e.Code != code:
		t.Errorf("error %v is not %s", err, code)
	case !strings.Contains(err.Error(), text):
		t.Errorf("error %q doesn't name %q", err, text)
	}
}
