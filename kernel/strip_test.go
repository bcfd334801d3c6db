package kernel

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"testing"
)

// Its boot tests load modules that were stripped.
func TestModulesLoseWhatDebuggersRead(t *testing.T) {
	files, _ := filepath.Glob("/usr/lib/uml/modules/*/kernel/fs/erofs/erofs.ko")
	if len(files) == 0 {
		t.Skip("User Mode Linux is not installed (package user-mode-linux): no module with debugging information is there")
	}
	module, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	stripped := withoutDebug(module)
	if len(stripped) > len(module)/2 {
		t.Errorf("%d of %d bytes are left", len(stripped), len(module))
	}
	if again := withoutDebug(stripped); !bytes.Equal(again, stripped) {
		t.Error("there was more to be taken off")
	}
	before, after := sections(t, module), sections(t, stripped)
	if len(before.Sections) != len(after.Sections) {
		t.Fatalf("%d sections became %d, which symbols count", len(before.Sections), len(after.Sections))
	}
	for i, s := range before.Sections {
		got := after.Sections[i]
		if forDebuggers(before, i) {
			if got.Type != elf.SHT_NULL || got.Size != 0 {
				t.Errorf("%s is left", s.Name)
			}
			continue
		}
		got.Offset, s.Offset = 0, 0
		if got.SectionHeader != s.SectionHeader {
			t.Errorf("%+v became %+v", s.SectionHeader, got.SectionHeader)
		}
		if s.Type == elf.SHT_NULL || s.Type == elf.SHT_NOBITS {
			continue
		}
		want, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		if content, err := got.Data(); err != nil || !bytes.Equal(content, want) {
			t.Errorf("%s has another content: %v", s.Name, err)
		}
	}
	if from, err := parseModinfo(stripped); err != nil || len(from.aliases) == 0 {
		t.Errorf("it says of itself: %+v, %v", from, err)
	}
}

func sections(t *testing.T, module []byte) *elf.File {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func FuzzWithoutDebug(f *testing.F) {
	f.Add(moduleOf("name=m", "depends="))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, module []byte) {
		kept := bytes.Clone(module)
		if out := withoutDebug(module); len(out) > len(module) {
			t.Fatalf("%d bytes became %d", len(module), len(out))
		}
		if !bytes.Equal(module, kept) {
			t.Fatal("what it was made of has changed")
		}
	})
}
