package kernel

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/cleave-project/cleave/image/compress"
)

// modinfo is what a module says of itself in its section .modinfo (Linux
// include/linux/module.h, MODULE_INFO).
type modinfo struct {
	depends []string // modules that must be loaded before
	pre     []string // those that it wants before it, and can do without
	post    []string
	aliases []string
}

// maxModule bounds a module's file, unpacked.
const maxModule = 128 << 20

// readModule reads a module, which may be compressed.
func readModule(r io.Reader) ([]byte, error) {
	z, _, err := compress.NewReader(r)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	b, err := io.ReadAll(io.LimitReader(z, maxModule+1))
	if err == nil && len(b) > maxModule {
		err = fmt.Errorf("it is larger than %d MiB", maxModule>>20)
	}
	return b, err
}

func parseModinfo(module []byte) (*modinfo, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("it has no section .modinfo")
	}
	b, err := s.Data()
	if err != nil {
		return nil, err
	}
	m := &modinfo{}
	for entry := range bytes.SplitSeq(b, []byte{0}) {
		m.add(string(entry))
	}
	return m, nil
}

func (m *modinfo) add(entry string) {
	key, value, _ := strings.Cut(entry, "=")
	switch key {
	case "alias":
		m.aliases = append(m.aliases, value)
	case "depends":
		for d := range strings.SplitSeq(value, ",") {
			if d != "" {
				m.depends = append(m.depends, moduleName(d))
			}
		}
	case "softdep":
		var to *[]string
		for word := range strings.FieldsSeq(value) {
			switch {
			case word == "pre:":
				to = &m.pre
			case word == "post:":
				to = &m.post
			case to != nil:
				*to = append(*to, word)
			}
		}
	}
}

// moduleName is the name of the module in a file: without directory and
// suffixes, and with underscores, as the kernel has it.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".")
	return strings.ReplaceAll(name, "-", "_")
}

// isModule tells whether a file is a module, compressed or not.
func isModule(file string) bool {
	for _, suffix := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if strings.HasSuffix(file, suffix) {
			return true
		}
	}
	return false
}
