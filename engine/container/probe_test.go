package container

import (
	"testing"

	"github.com/cleave-project/cleave/engine/enginetest"
)

func TestProbeFindsWhatAStartNeeds(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	caps, findings := e.Probe(t.Context())
	if !caps.Available || caps.Reason != nil {
		t.Errorf("not available: %v", caps.Reason)
	}
	for _, f := range findings {
		t.Logf("%-16s %-8s %s (%s)", f.Name, f.State, f.Detail, f.Remedy)
		if f.State != ok && (f.Detail == "" || f.Remedy == "") {
			t.Errorf("%s is %s without a reason or a remedy", f.Name, f.State)
		}
	}
}

// Older kernels go other ways, which work on newer ones too.
func TestGuestsStartWithoutNewMountFeatures(t *testing.T) {
	for name, f := range map[string]features{
		"6.14":                           {fileEROFS: true, layerFDs: true},
		"6.11":                           {},
		"6.15 without file-backed EROFS": {layerFDs: true, cloneDetached: true},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t)
			e.feature.fileEROFS = e.feature.fileEROFS && f.fileEROFS
			e.feature.layerFDs = e.feature.layerFDs && f.layerFDs
			e.feature.cloneDetached = e.feature.cloneDetached && f.cloneDetached
			checkLeaks(t, e)
			for range 2 { // two guests of one image at a time
				enginetest.Start(t, e, guestSpec(t, "exec sleep 1000"))
			}
			out, st := runGuest(t, e, guestSpec(t, "echo x > /etc/passwd && cat /etc/passwd; ls -ln /etc/passwd"))
			if st.Code != 0 || out == "" || out[:2] != "x\n" {
				t.Errorf("status %+v, output %q", st, out)
			}
		})
	}
}
