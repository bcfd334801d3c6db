package settings

import (
	"bufio"
	"os"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/spf13/pflag"
)

// SectionAnnotation marks a flag with the section that help shows it in.
const SectionAnnotation = "section"

// value is a flag that puts what it is given into a patch at once, so that
// a bad value is a usage error of that very flag.
type value struct {
	s *Setting
	p *Patch
}

func (v value) String() string { return "" }
func (v value) Type() string   { return v.s.Value }

func (v value) Set(text string) error {
	err := v.p.Add(v.s, text)
	if err == nil {
		return nil
	}
	// pflag names the flag itself.
	e := api.AsError(err)
	e.Message = strings.TrimPrefix(e.Message, v.s.Key+": ")
	return e
}

// Flags registers a flag for every setting of p's table that has one. What
// they are given ends up in p.
func Flags(fs *pflag.FlagSet, p *Patch) {
	for _, s := range p.Table {
		if s.Flag == "" {
			continue
		}
		doc := s.Doc
		if len(s.Choices) > 0 {
			doc += ": " + strings.Join(s.Choices, ", ")
		}
		f := fs.VarPF(value{s, p}, s.Flag, s.Short, doc)
		if s.IsSwitch() {
			f.NoOptDefVal = "true"
		}
		if s.Section != "" {
			f.Annotations = map[string][]string{SectionAnnotation: {string(s.Section)}}
		}
	}
}

// InstanceFlags registers the flags of instances, and those that are short
// for others.
func InstanceFlags(fs *pflag.FlagSet, p *Patch) {
	p.Table = Instance
	Flags(fs, p)
	add(fs, "init", "", Process, "", func(text string) error {
		s, _, _ := Instance.Find("init")
		return p.Add(s, text)
	}).Hidden = true
	fs.Lookup("init").NoOptDefVal = "true"
	add(fs, "env-file", "FILE", Process, "read environment variables from a file of NAME=VALUE lines", p.envFile)
	off := add(fs, "no-health", "", Health, "turn the image's health check off", func(string) error {
		s, _, _ := Instance.Find("health.command")
		return p.Add(s, "")
	})
	off.NoOptDefVal = "true"
	machineFlags(fs, p)
}

// funcValue is a flag that calls a function.
type funcValue struct {
	set      func(string) error
	typeName string
}

func (v funcValue) String() string     { return "" }
func (v funcValue) Type() string       { return v.typeName }
func (v funcValue) Set(t string) error { return v.set(t) }

func add(fs *pflag.FlagSet, name, typeName string, sec Section, doc string, set func(string) error) *pflag.Flag {
	f := fs.VarPF(funcValue{set, typeName}, name, "", doc)
	f.Annotations = map[string][]string{SectionAnnotation: {string(sec)}}
	return f
}

// envFile reads NAME=VALUE lines; empty ones and those that begin with # are
// skipped, and nothing is unquoted.
func (p *Patch) envFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	env, _, _ := Instance.Find("env")
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := p.Add(env, strings.TrimPrefix(line, "export ")); err != nil {
			return api.Errorf(api.CodeInvalid, "%s line %d: %w", path, n, err)
		}
	}
	return sc.Err()
}
