package network

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Hosts that still run the iptables from before nftables are asked through
// its programs: the kernel's interface has no way to add a single rule.

type legacyTables struct{ programs, names string }

var legacyFamilies = []legacyTables{
	{"iptables-legacy iptables", "/proc/thread-self/net/ip_tables_names"},
	{"ip6tables-legacy ip6tables", "/proc/thread-self/net/ip6_tables_names"},
}

// program is the one that knows the old tables, or empty when none does or
// none is needed: the table "filter" was never touched. (Asking a program
// that would create it.)
func (l legacyTables) program() string {
	b, err := os.ReadFile(l.names)
	if err != nil || !slices.Contains(strings.Fields(string(b)), "filter") {
		return ""
	}
	for name := range strings.FieldsSeq(l.programs) {
		out, err := exec.Command(name, "--version").Output()
		if err == nil && !strings.Contains(string(out), "nf_tables") {
			return name
		}
	}
	return ""
}

func runIptables(program string, args ...string) (string, error) {
	out, err := exec.Command(program, append([]string{"-w", "5"}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// legacyDoors are the rules for a bridge, each in its chain.
func legacyDoors(rules, bridge, comment string) [][]string {
	tail := []string{"-m", "comment", "--comment", comment, "-j", "ACCEPT"}
	var all [][]string
	if strings.Contains(rules, "-P FORWARD DROP\n") {
		chain := "FORWARD"
		if strings.Contains(rules, "-N DOCKER-USER\n") {
			chain = "DOCKER-USER"
		}
		all = append(all,
			slices.Concat([]string{chain, "-i", bridge}, tail),
			slices.Concat([]string{chain, "-o", bridge}, tail))
	}
	if strings.Contains(rules, "-P INPUT DROP\n") {
		all = append(all, slices.Concat([]string{"INPUT", "-i", bridge}, tail))
	}
	return all
}

func (m *Manager) openLegacyDoors(bridges []string) error {
	for _, l := range legacyFamilies {
		program := l.program()
		if program == "" {
			continue
		}
		rules, err := runIptables(program, "-S")
		if err != nil {
			return err
		}
		for _, name := range bridges {
			for _, d := range legacyDoors(rules, name, m.doorComment(name)) {
				if _, err := runIptables(program, append([]string{"-C"}, d...)...); err == nil {
					continue
				}
				if _, err := runIptables(program, append([]string{"-I"}, d...)...); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (m *Manager) closeLegacyDoors(keep []string) error {
	var errs []error
	for _, l := range legacyFamilies {
		program := l.program()
		if program == "" {
			continue
		}
		rules, err := runIptables(program, "-S")
		errs = append(errs, err)
		for line := range strings.Lines(rules) {
			fields := strings.Fields(line)
			i := slices.Index(fields, "--comment")
			if i < 0 || i+1 == len(fields) || fields[0] != "-A" {
				continue
			}
			fields[i+1] = strings.Trim(fields[i+1], `"`)
			bridge, ours := strings.CutPrefix(fields[i+1], m.doorComment(""))
			if ours && !slices.Contains(keep, bridge) {
				_, err := runIptables(program, append([]string{"-D"}, fields[1:]...)...)
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
