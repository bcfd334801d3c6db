package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// modulesDir holds the modules, and moduleOrder names them.
const (
	modulesDir  = "/modules"
	moduleOrder = modulesDir + "/order"
)

// loadModules loads what the initramfs says. After a failure it goes on, so
// that there may be a control disk to note the first one on.
func loadModules() error {
	list, err := os.ReadFile(moduleOrder)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel that has all of it
	}
	var first error
	for name := range strings.FieldsSeq(string(list)) {
		if err := loadModule(name); err != nil && first == nil {
			first = api.Errorf(api.CodeInvalid, "load the kernel's module %s: %w", name, err).
				WithHint("add the kernel again, with all of its modules")
		}
	}
	return errors.Join(err, first)
}

// loadModule loads one. Some find out when they start that they have nothing
// to do here, and others are there already.
func loadModule(name string) error {
	f, err := os.Open(path.Join(modulesDir, name))
	if err != nil {
		return errors.Unwrap(err)
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EKEYREJECTED) || errors.Is(err, unix.EPERM) {
		err = loadSigned(f)
	}
	switch {
	case err == nil, errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENODEV):
		return nil
	case errors.Is(err, unix.ENOEXEC):
		return fmt.Errorf("%w: it isn't of this kernel", err)
	case errors.Is(err, unix.ENOENT):
		return errors.New("it needs another module")
	}
	return err
}

// loadSigned loads a module with its signature, which the initramfs has beside
// it: this kernel insists.
func loadSigned(f *os.File) error {
	plain, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	signature, err := os.ReadFile(f.Name() + ".sig")
	if err != nil {
		return errors.New("the kernel wants its signature, and it has none")
	}
	return unix.InitModule(append(plain, signature...), "")
}
