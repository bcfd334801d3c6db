package acpi

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var machine = Machine{
	CPUs: 3, IOAPIC: 0xfec00000, LAPIC: 0xfee00000, ECAM: 0xe0000000,
	Low: Window{0xc0000000, 0xdfffffff}, High: Window{1 << 36, 1<<37 - 1},
	Serial:   []Serial{{0x3f8, 4}},
	Ports:    Ports{Sleep: 0x600, Reset: 0x604, Event: 0x608, Slots: 0x610},
	EventGSI: 9, Generation: 0xdf000,
}

const place = 0xe0000

// tables follows the pointers as a kernel does.
func tables(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	at := func(addr uint64) []byte {
		if addr < place || addr-place+36 > uint64(len(b)) {
			t.Fatalf("a table is at %#x", addr)
		}
		d := b[addr-place:]
		d = d[:le.Uint32(d[4:])]
		if checksum(d) != 0 {
			t.Errorf("%s: wrong check sum", d[:4])
		}
		return d
	}
	if string(b[:8]) != "RSD PTR " || checksum(b[:20]) != 0 || checksum(b[:36]) != 0 {
		t.Fatalf("root pointer % x", b[:36])
	}
	out := map[string][]byte{}
	x := at(le.Uint64(b[24:]))
	for p := x[36:]; len(p) > 0; p = p[8:] {
		d := at(le.Uint64(p))
		out[string(d[:4])] = d
	}
	out["DSDT"] = at(le.Uint64(out["FACP"][140:]))
	return out
}

func TestTablesLeadToEachOther(t *testing.T) {
	b, err := Build(machine, place)
	if err != nil {
		t.Fatal(err)
	}
	got := tables(t, b)
	for _, name := range []string{"FACP", "APIC", "MCFG", "DSDT"} {
		if got[name] == nil {
			t.Errorf("there is no %s", name)
		}
	}
	if n := bytes.Count(got["APIC"], []byte{1, 0, 0, 0}); n < machine.CPUs {
		t.Errorf("%d processors", n)
	}
	if addr := binary.LittleEndian.Uint64(got["MCFG"][44:]); addr != machine.ECAM {
		t.Errorf("configuration space at %#x", addr)
	}
	if len(b) > 0x20000 {
		t.Errorf("%d bytes of tables", len(b))
	}
}

func TestTooManyProcessorsAreRefused(t *testing.T) {
	for _, n := range []int{0, 255} {
		m := machine
		m.CPUs = n
		if _, err := Build(m, place); err == nil {
			t.Errorf("%d processors are taken", n)
		}
	}
}

// TestACPICAReadsTheTables has the reference implementation disassemble all
// tables, and compile the result again.
func TestACPICAReadsTheTables(t *testing.T) {
	if _, err := exec.LookPath("iasl"); err != nil {
		t.Skipf("needs ACPICA's compiler (acpica-tools): %v", err)
	}
	b, err := Build(machine, place)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, table := range tables(t, b) {
		file := filepath.Join(dir, strings.ToLower(name))
		if err := os.WriteFile(file+".dat", table, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("iasl", "-d", file+".dat").CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("Error")) || bytes.Contains(out, []byte("Warning")) {
			t.Errorf("%s: %v\n%s", name, err, out)
			continue
		}
		text, err := os.ReadFile(file + ".dsl")
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte("**** ")) {
			t.Errorf("%s is not understood:\n%s", name, text)
		}
		if name != "DSDT" {
			continue
		}
		for _, want := range []string{"PNP0A08", "PNP0C0C", "ACPI0013", "_EJ0", "_EVT", "_S5", "COM1", "VM_Gen_Counter", `Notify (\_SB.PWRB, 0x80)`, "S031"} {
			if !bytes.Contains(text, []byte(want)) {
				t.Errorf("DSDT has no %s", want)
			}
		}
		if out, err := exec.Command("iasl", file+".dsl").CombinedOutput(); err != nil || !bytes.Contains(out, []byte(" 0 Errors")) {
			t.Errorf("DSDT: %v\n%s", err, out)
		}
	}
}
