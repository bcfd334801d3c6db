package e2e

import (
	"encoding/json"
	"testing"

	"github.com/cleave-project/cleave/verify"
)

// TestVerify holds each kind of wall to the properties that it is sold for.
// What a container changes is known; it must not become more in silence.
func TestVerify(t *testing.T) {
	h := newHost(t)
	var r verify.Report
	if err := json.Unmarshal([]byte(h.do("verify", "--kind", "container", "-o", "json")), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Results) != 1 || r.Results[0].Error != nil {
		t.Fatalf("got %+v", r.Results)
	}
	got := r.Results[0]
	known := map[string]bool{"a thread's own descriptors": true, "a device node": true, "mounting": true}
	for _, d := range got.Differences {
		if !known[d.Name] {
			t.Errorf("%s: %s: %s outside, %s inside", d.Area, d.Name, d.Outside, d.Inside)
		}
	}
	if got.Asked < 75 || len(got.Efficiency) < 7 {
		t.Errorf("%d questions, %d figures", got.Asked, len(got.Efficiency))
	}
	if len(got.Control) < 9 || r.Violated() {
		t.Errorf("control: %+v", got.Control)
	}
	if names := h.names(); len(names) != 0 {
		t.Errorf("guests are left: %q", names)
	}
}
