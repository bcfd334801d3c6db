package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigurationIsStrict(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cleaved.yaml")
	for text, want := range map[string]string{
		"listne: x":  "listne",
		"data: [a]":  "data",
		"uidBase: x": "uidBase",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(file, true); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := os.WriteFile(file, []byte("listen: 127.0.0.1:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(file, true); err != nil || c.Listen != "127.0.0.1:1" || c.Data != DefaultData {
		t.Errorf("%+v %v", c, err)
	}
}

func TestOnlyANamedConfigurationMustExist(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.yaml")
	if c, err := Load(missing, false); err != nil || c.Run != DefaultRun {
		t.Errorf("%+v %v", c, err)
	}
	if _, err := Load(missing, true); err == nil {
		t.Error("a named file that is missing was passed over")
	}
}

func TestImpossibleSettingsAreRefused(t *testing.T) {
	for name, c := range map[string]Config{
		"long run directory": {Data: "/d", Run: "/" + strings.Repeat("x", 100)},
		"half of TLS":        {Data: "/d", Run: "/r", TLSCert: "/c"},
		"no data directory":  {Run: "/r"},
	} {
		if err := c.complete(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDaemonsHaveScopesAndIDsOfTheirOwn(t *testing.T) {
	a, b, d := Config{Data: "/a", Run: "/r"}, Config{Data: "/b", Run: "/r"}, Config{Data: DefaultData, Run: DefaultRun}
	for _, c := range []*Config{&a, &b, &d} {
		if err := c.complete(); err != nil {
			t.Fatal(err)
		}
		if end := uint64(c.UIDBase) + 4096*65536; c.UIDBase < 0x70000000 || end > 1<<32 {
			t.Errorf("ids of %s from %#x to %#x", c.Data, c.UIDBase, end)
		}
	}
	if a.scope() == b.scope() || d.scope() != "" {
		t.Errorf("scopes %q %q %q", a.scope(), b.scope(), d.scope())
	}
	if a.UIDBase == d.UIDBase || b.UIDBase == d.UIDBase {
		t.Error("another daemon has the default one's ids")
	}
}
