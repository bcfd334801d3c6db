package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
)

func TestSizesAreReadAndPrinted(t *testing.T) {
	for in, want := range map[string]Bytes{
		"0": 0, "4096": 4096, "1KiB": 1024, "1k": 1024, "1kB": 1000, "512MiB": 512 << 20, "512 MiB": 512 << 20,
		"1.5G": 3 << 29, "20GB": 20e9, "2TiB": 2 << 40, "7B": 7,
	} {
		if got, err := ParseBytes(in); err != nil || got != want {
			t.Errorf("%q is %d (%v), want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "lots", "-1", "1.2.3M", "1 XB", "9999999999999TiB", "NaN", "1e3"} {
		if got, err := ParseBytes(in); !IsCode(err, CodeInvalid) {
			t.Errorf("%q is %d, %v", in, got, err)
		}
	}
	for in, want := range map[Bytes]string{0: "0B", 1023: "1023B", 1024: "1KiB", 1536 << 10: "1.5MiB", 10 * GiB: "10GiB", 3 * TiB: "3TiB"} {
		if got := in.String(); got != want {
			t.Errorf("%d prints as %s, want %s", int64(in), got, want)
		}
	}
}

func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"1GiB", "1.5k", "", "9223372036854775807", "99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := ParseBytes(s); err == nil && b < 0 {
			t.Errorf("%q is %d", s, b)
		}
	})
}

func TestSizesInJSONAreNumbersOrStrings(t *testing.T) {
	var r Resources
	if err := json.Unmarshal([]byte(`{"memory":"64MiB","swap":1024}`), &r); err != nil || r.Memory != 64*MiB || r.Swap != 1024 {
		t.Errorf("%+v %v", r, err)
	}
	b, err := json.Marshal(Resources{Memory: KiB})
	if err != nil || string(b) != `{"memory":1024}` {
		t.Errorf("%s %v", b, err)
	}
}

func TestErrorsKeepCodeCauseAndContext(t *testing.T) {
	cause := errors.New("cause")
	e := Errorf(CodeNoSpace, "pool %q: %w", "fast", cause).WithHint("delete something").WithField("spec.root")
	if e.Error() != `pool "fast": cause; delete something` || !errors.Is(e, cause) {
		t.Errorf("%v", e)
	}
	got := AsError(fmt.Errorf("launch web: %w", e))
	if got.Code != CodeNoSpace || got.Field != "spec.root" || got.Error() != `launch web: pool "fast": cause; delete something` {
		t.Errorf("%+v", got)
	}
	if got := AsError(cause); got.Code != CodeInternal || got.Message != "cause" {
		t.Errorf("%+v", got)
	}
	if AsError(nil) != nil {
		t.Error("no error became one")
	}
}

func TestNames(t *testing.T) {
	for _, ok := range []string{"a", "web-1", "0", "x234567890123456789012345678901234567890123456789012345678901234"[:63]} {
		if err := ValidateName("instance", ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "A", "a_b", "-a", "a-", "a.b", "a/b", "..", "ä", "a b", "x2345678901234567890123456789012345678901234567890123456789012345"} {
		if err := ValidateName("instance", bad); !IsCode(err, CodeInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestSpecsThatMakeNoSenseAreRefusedByField(t *testing.T) {
	minus := -1
	for field, change := range map[string]func(*InstanceSpec){
		"spec.image":                func(s *InstanceSpec) { s.Image = "" },
		"spec.kind":                 func(s *InstanceSpec) { s.Kind = "jail" },
		"spec.restart":              func(s *InstanceSpec) { s.Restart, s.Ephemeral = RestartAlways, true },
		"spec.env":                  func(s *InstanceSpec) { s.Env = map[string]string{"A=B": ""} },
		"spec.workDir":              func(s *InstanceSpec) { s.WorkDir = "rel" },
		"spec.hostname":             func(s *InstanceSpec) { s.Hostname = "no_good" },
		"spec.stopSeconds":          func(s *InstanceSpec) { s.StopSeconds = &minus },
		"spec.root.size":            func(s *InstanceSpec) { s.Root.Size = KiB },
		"spec.resources.cpus":       func(s *InstanceSpec) { s.Resources.CPUs = 0.001 },
		"spec.resources.cpuWeight":  func(s *InstanceSpec) { s.Resources.CPUWeight = 20000 },
		"spec.resources.memory":     func(s *InstanceSpec) { s.Resources.Memory = MiB },
		"spec.resources.memorySoft": func(s *InstanceSpec) { s.Resources.Memory, s.Resources.MemorySoft = 64*MiB, 65*MiB },
		"spec.resources.swap":       func(s *InstanceSpec) { s.Resources.Swap = MiB },
		"spec.resources.cpuSet":     func(s *InstanceSpec) { s.Resources.CPUSet = "0-" },
		"spec.mounts[0]":            func(s *InstanceSpec) { s.Mounts = []Mount{{Target: "/x"}} },
		"spec.mounts[0].hostPath":   func(s *InstanceSpec) { s.Mounts = []Mount{{HostPath: "/a/../b", Target: "/x"}} },
		"spec.mounts[0].target":     func(s *InstanceSpec) { s.Mounts = []Mount{{Volume: "v", Target: "/dev/x"}} },
		"spec.mounts[1].target":     func(s *InstanceSpec) { s.Mounts = []Mount{{Volume: "v", Target: "/x"}, {Volume: "w", Target: "/x"}} },
		"spec.nics[0].name":         func(s *InstanceSpec) { s.NICs = []NIC{{Name: "lo"}} },
		"spec.nics[0].ipv4":         func(s *InstanceSpec) { s.NICs = []NIC{{IPv4: "::1"}} },
		"spec.nics[0].mac":          func(s *InstanceSpec) { s.NICs = []NIC{{MAC: "01:00:00:00:00:00"}} },
		"spec.publish[0]":           func(s *InstanceSpec) { s.Publish = []Publish{{HostPort: 80}} },
		"spec.publish[1]": func(s *InstanceSpec) {
			s.Publish = []Publish{{HostPort: 80, GuestPort: 1}, {HostPort: 80, GuestPort: 2}}
		},
		"spec.publish[0].hostIP": func(s *InstanceSpec) { s.Publish = []Publish{{HostIP: "host", HostPort: 1, GuestPort: 1}} },
		"spec.sysctls":           func(s *InstanceSpec) { s.Sysctls = map[string]string{"vm.swappiness": "1"} },
		"spec.ulimits":           func(s *InstanceSpec) { s.Ulimits = map[string]Ulimit{"nofile": {Soft: 2, Hard: 1}} },
		"spec.security":          func(s *InstanceSpec) { s.Security.AddCapabilities = []string{"net raw"} },
	} {
		s := InstanceSpec{Image: "base"}
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&s)
		err := s.Validate()
		var e *Error
		if !errors.As(err, &e) || e.Field != field || e.Code != CodeInvalid {
			t.Errorf("%s: %v (field %q)", field, err, e.Field)
		}
	}
}

func TestNoPortsAndTheDefaultPortStayApartInJSON(t *testing.T) {
	for _, nics := range [][]NIC{nil, {}} {
		b, err := json.Marshal(InstanceSpec{NICs: nics})
		if err != nil {
			t.Fatal(err)
		}
		var back InstanceSpec
		if err := json.Unmarshal(b, &back); err != nil || (back.NICs == nil) != (nics == nil) {
			t.Errorf("%v became %v by %s", nics, back.NICs, b)
		}
	}
}
