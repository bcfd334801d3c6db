package control

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/iso9660"
)

// mediumFile is an ISO that nothing boots from.
func mediumFile(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	if err := iso9660.Write(&b, "test", []iso9660.File{{Name: "file", Size: 1, Data: strings.NewReader("x")}}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.iso")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOnlyMediaGoIntoADrive(t *testing.T) {
	v := newVM()
	w := newWorld(t, v)
	iso, text := mediumFile(t), filepath.Join(t.TempDir(), "notes.txt")
	if err := os.WriteFile(text, bytes.Repeat([]byte("no medium\n"), 1e4), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := func(iso string) *api.Instance {
		return &api.Instance{Meta: api.Meta{Name: "a"}, Spec: api.InstanceSpec{Kind: api.KindVM, Machine: api.Machine{ISO: iso}}}
	}
	for medium, want := range map[string]api.Code{text: api.CodeInvalid, "tiny": api.CodeInvalid, "/no/such.iso": api.CodeNotFound, "unknown": api.CodeNotFound} {
		_, err := w.c.CreateInstance(t.Context(), empty(medium), true)
		if e := api.AsError(err); e == nil || e.Code != want || e.Field != "spec.machine.iso" || medium != "unknown" && e.Hint == "" {
			t.Errorf("%s: %v", medium, err)
		}
	}
	// Nothing boots from this one, and there is nothing else to boot.
	op := w.finish(w.c.CreateInstance(t.Context(), empty(iso), true))
	if op.Error != nil || !strings.Contains(op.Step, "no boot record") {
		t.Errorf("%v, %q", op.Error, op.Step)
	}
	if _, err := w.c.PatchInstance(t.Context(), "", "a", 0, []byte(`{"spec":{"machine":{"iso":"`+text+`"}}}`)); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("insert: %v", err)
	}
	if op := w.patch("a", `{"spec":{"machine":{"iso":null}}}`); op.Error != nil || op.Step != "" {
		t.Errorf("eject: %v, %q", op.Error, op.Step)
	}
}
