package settings

import (
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/spf13/pflag"
)

// medium is a file of the host if it looks like one, else an image's name.
func medium(p *Patch, s string) (any, error) {
	if s == "" {
		return "", nil
	}
	if strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../") {
		return directory(p, s)
	}
	if st, err := os.Stat(filepath.Join(p.Dir, s)); err == nil && st.Mode().IsRegular() {
		return directory(p, s)
	}
	return s, nil
}

func devices(_ *Patch, s string) (any, error) { return anys(strings.Split(s, ",")), nil }

// sshKeys takes a public key as it is, or a file of them (sshd(8),
// AUTHORIZED_KEYS FILE FORMAT, without options).
func sshKeys(p *Patch, s string) (any, error) {
	if strings.ContainsRune(s, ' ') {
		return []any{s}, nil
	}
	path, err := directory(p, s)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path.(string))
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "%q is neither a public key nor a file of them: %w", s, err)
	}
	var keys []any
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			keys = append(keys, line)
		}
	}
	if len(keys) == 0 {
		return nil, api.Errorf(api.CodeInvalid, "there is no public key in %s", s)
	}
	return keys, nil
}

// machineFlags registers the flags of machines that read files or stand for
// several settings.
func machineFlags(fs *pflag.FlagSet, p *Patch) {
	add(fs, "boot", "disk|bios|uefi", Hardware, "boot a system of its own from its disk; disk: by the firmware that it seems made for", func(text string) error {
		if text == "disk" {
			return nil // launching an image of a disk does that by itself
		}
		s, _, _ := Instance.Find("firmware")
		return p.Add(s, text)
	})
	for _, f := range []struct{ flag, key, doc string }{
		{"user-data", "cloud-init.user-data", "user data for cloud-init in a disk image (- for standard input)"},
		{"network-config", "cloud-init.network-config", "network configuration for cloud-init (default: made from the ports)"},
	} {
		add(fs, f.flag, "FILE", Hardware, f.doc, func(path string) error {
			text, err := readText(path)
			if err != nil {
				return err
			}
			s, _, _ := Instance.Find(f.key)
			return p.Add(s, text)
		})
	}
}

func readText(path string) (string, error) {
	if path == "-" {
		text, err := io.ReadAll(os.Stdin)
		return string(text), err
	}
	text, err := os.ReadFile(path)
	return string(text), err
}
