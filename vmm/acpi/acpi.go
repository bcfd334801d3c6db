// Package acpi writes the tables by which a guest's kernel learns what its
// machine has (ACPI 6.5): processors and interrupt controllers (MADT), the
// configuration space of PCI (MCFG), how to power off, reset and be told of
// events (FADT, hardware-reduced), and the devices that can't be probed for
// (DSDT).
//
// The machine has no legacy PM hardware. A power button and changes of PCI
// slots come by one interrupt, the generic event device's, whose reason is
// read from a port.
package acpi

import (
	"encoding/binary"
	"fmt"
)

// Machine is what the tables tell of.
type Machine struct {
	CPUs int
	// IOAPIC and LAPIC are where the controllers are.
	IOAPIC, LAPIC uint32
	// ECAM is the configuration space of PCI bus 0 (PCI Express, 7.2.2).
	ECAM uint64
	// Low and High are the windows for devices' memory, below and above 4 GiB.
	Low, High Window
	// Serial are the base ports and interrupts of UARTs.
	Serial []Serial
	Ports  Ports
	// EventGSI is the generic event device's interrupt.
	EventGSI uint32
	// Generation is where 16 bytes are by which the guest sees that it goes on
	// from a snapshot (Microsoft, "Virtual Machine Generation ID").
	Generation uint32
}

// Window is a range of addresses, both ends in it.
type Window struct{ From, To uint64 }

// Serial is a 16550.
type Serial struct {
	Port uint16
	GSI  uint32
}

// Ports are those by which a guest speaks to the machine.
type Ports struct {
	Sleep uint16 // SleepRequest powers it off; the port after it is the status
	Reset uint16 // ResetValue resets it
	Event uint16 // a byte of Event bits, cleared by reading
	Slots uint16 // 32 bits of slots that were filled, 32 that shall be left, 32 to eject by
}

// Values that a guest writes.
const (
	// SleepRequest in the sleep register is a request for state S5 (ACPI 6.5,
	// 4.8.3.7): SLP_EN and SLP_TYP 5.
	SleepRequest = 1<<5 | sleepType<<2
	ResetValue   = 1

	sleepType = 5
)

// Bits of the event port.
const (
	EventPower      = 1 << 0
	EventSlots      = 1 << 1
	EventGeneration = 1 << 2 // the number at Machine.Generation is another
)

// Slots is how many devices bus 0 has.
const Slots = 32

// Build returns the tables for a place in memory, at which the root pointer
// comes first.
func Build(m Machine, at uint64) ([]byte, error) {
	if m.CPUs < 1 || m.CPUs > 254 {
		return nil, fmt.Errorf("%d processors can't be told of by 8-bit APIC ids", m.CPUs)
	}
	out := make([]byte, 64) // the root pointer's place
	add := func(table []byte) (addr uint64) {
		out = append(out, make([]byte, -len(out)&15)...)
		addr = at + uint64(len(out))
		out = append(out, table...)
		return addr
	}
	dsdt := add(m.dsdt())
	var list []byte
	for _, t := range [][]byte{m.fadt(dsdt), m.madt(), m.mcfg()} {
		list = binary.LittleEndian.AppendUint64(list, add(t))
	}
	xsdt := add(table("XSDT", 1, list))
	copy(out, rsdp(xsdt))
	return out, nil
}

// rsdp is the root pointer (5.2.5.3).
func rsdp(xsdt uint64) []byte {
	b := make([]byte, 36)
	copy(b, "RSD PTR ")
	copy(b[9:], oem)
	b[15] = 2
	binary.LittleEndian.PutUint32(b[20:], 36)
	binary.LittleEndian.PutUint64(b[24:], xsdt)
	b[8] = checksum(b[:20])
	b[32] = checksum(b)
	return b
}

const oem = "CLEAVE"

// table puts the common header before a body (5.2.6).
func table(signature string, revision byte, body []byte) []byte {
	b := make([]byte, 36, 36+len(body))
	copy(b, signature)
	binary.LittleEndian.PutUint32(b[4:], uint32(36+len(body)))
	b[8] = revision
	copy(b[10:], oem)
	copy(b[16:], oem+"VM")
	binary.LittleEndian.PutUint32(b[24:], 1)
	copy(b[28:], "CLVE")
	binary.LittleEndian.PutUint32(b[32:], 1)
	b = append(b, body...)
	b[9] = checksum(b)
	return b
}

// checksum makes the sum of all bytes zero.
func checksum(b []byte) (sum byte) {
	for _, c := range b {
		sum -= c
	}
	return sum
}

// fadt is the fixed description (5.2.9), of its 244 bytes behind the header
// only those that a hardware-reduced machine has.
func (m Machine) fadt(dsdt uint64) []byte {
	const (
		offSCI, offFlags, offReset, offResetValue, offMinor = 46, 112, 116, 128, 131
		offXDSDT, offSleep, offSleepStatus, size            = 140, 244, 256, 276
		resetSupported, headlessOK, hardwareReduced         = 1 << 10, 1 << 12, 1 << 20
		noVGA, noRTC                                        = 1 << 2, 1 << 5 // IAPC_BOOT_ARCH
		offBootArch                                         = 109
	)
	b := make([]byte, size) // with the header's bytes, which go again
	le := binary.LittleEndian
	// A kernel that looks for the clock waits a second for ports that nobody
	// answers, at what each access costs.
	le.PutUint16(b[offBootArch:], noVGA|noRTC)
	le.PutUint32(b[offFlags:], resetSupported|headlessOK|hardwareReduced)
	putRegister(b[offReset:], m.Ports.Reset)
	b[offResetValue] = ResetValue
	b[offMinor] = 5
	le.PutUint64(b[offXDSDT:], dsdt)
	putRegister(b[offSleep:], m.Ports.Sleep)
	putRegister(b[offSleepStatus:], m.Ports.Sleep+1)
	return table("FACP", 6, b[36:])
}

// putRegister writes a generic address (5.2.3.2): a port of one byte.
func putRegister(b []byte, port uint16) {
	b[0], b[1], b[3] = 1, 8, 1
	binary.LittleEndian.PutUint64(b[4:], uint64(port))
}

// madt lists processors and the I/O APIC (5.2.12).
func (m Machine) madt() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, m.LAPIC)
	b = le.AppendUint32(b, 0) // no PICs for the kernel to look at
	for i := range m.CPUs {
		b = append(b, 0, 8, byte(i), byte(i))
		b = le.AppendUint32(b, 1) // enabled
	}
	b = append(b, 1, 12, 0, 0)
	b = le.AppendUint32(b, m.IOAPIC)
	b = le.AppendUint32(b, 0) // its first interrupt
	return table("APIC", 6, b)
}

// mcfg tells where the configuration space is (PCI Firmware 3.3, 4.1.2).
func (m Machine) mcfg() []byte {
	b := make([]byte, 8)
	b = binary.LittleEndian.AppendUint64(b, m.ECAM)
	b = append(b, make([]byte, 8)...) // segment 0, buses 0 to 0
	return table("MCFG", 1, b)
}

// ECAMSize is the configuration space of one bus.
const ECAMSize = 1 << 20

func (m Machine) dsdt() []byte {
	body := join(
		scope(`\_SB_`,
			m.pci(),
			m.reserved(),
			device("PWRB", named("_HID", eisaID("PNP0C0C")), named("_UID", integer(0))),
			m.generation(),
			m.events(),
			m.serial(),
		),
		named(`\_S5_`, pack(integer(sleepType), integer(0), integer(0), integer(0))),
	)
	return table("DSDT", 2, body)
}

// pci is the host bridge with its slots.
func (m Machine) pci() aml {
	windows := []aml{
		window(spaceBus, 16, 0, 0),
		window(spaceIO, 16, 0x1000, 0xffff),
		window(spaceMemory, 32, m.Low.From, m.Low.To),
	}
	if m.High.To > m.High.From {
		windows = append(windows, window(spaceMemory, 64, m.High.From, m.High.To))
	}
	body := []aml{
		named("_HID", eisaID("PNP0A08")), named("_CID", eisaID("PNP0A03")),
		named("_UID", integer(0)), named("_SEG", integer(0)), named("_BBN", integer(0)),
		named("_CCA", integer(1)), named("_CRS", resources(windows...)),
		ports("SLTS", uint64(m.Ports.Slots), 12),
		field("SLTS", 3, 4, "SUPS", "SDNS", "SEJS"),
	}
	var scan []aml
	for i := range Slots {
		n := fmt.Sprintf("S%03d", i)
		body = append(body, device(n,
			named("_ADR", integer(uint64(i)<<16)), named("_SUN", integer(uint64(i))),
			method("_EJ0", 1, false, store(integer(1<<i), name("SEJS"))),
		))
		scan = append(scan,
			when(and(local(0), integer(1<<i)), notify(n, integer(1))), // check: a device came
			when(and(local(1), integer(1<<i)), notify(n, integer(3))), // eject request
		)
	}
	body = append(body, method("SCAN", 0, true,
		append([]aml{store(name("SUPS"), local(0)), store(name("SDNS"), local(1))}, scan...)...))
	return device("PCI0", body...)
}

// reserved keeps others off the configuration space; without it Linux
// doesn't use that (arch/x86/pci/mmconfig-shared.c).
func (m Machine) reserved() aml {
	return device("RSVD",
		named("_HID", eisaID("PNP0C02")), named("_UID", integer(1)),
		named("_CRS", resources(fixedMemory(uint32(m.ECAM), ECAMSize), ioPorts(m.Ports.Sleep, 2), ioPorts(m.Ports.Reset, 1))),
	)
}

// generation is what leads to the generation's number. Systems know the device
// by its compatible name.
func (m Machine) generation() aml {
	return device("VGEN",
		named("_HID", text("CLVE0001")), named("_CID", text("VM_Gen_Counter")), named("_DDN", text("VM_Gen_Counter")),
		named("ADDR", pack(integer(uint64(m.Generation)), integer(0))),
	)
}

// events is the generic event device (5.6.9).
func (m Machine) events() aml {
	return device("GED_",
		named("_HID", text("ACPI0013")), named("_UID", integer(0)),
		named("_CRS", resources(interrupt(m.EventGSI))),
		ports("EVTS", uint64(m.Ports.Event), 1),
		field("EVTS", 1, 1, "EVTR"),
		method("_EVT", 1, true,
			store(name("EVTR"), local(0)),
			when(and(local(0), integer(EventPower)), notify(`\_SB_.PWRB`, integer(0x80))),
			when(and(local(0), integer(EventSlots)), name(`\_SB_.PCI0.SCAN`)),
			when(and(local(0), integer(EventGeneration)), notify(`\_SB_.VGEN`, integer(0x80))),
		),
	)
}

func (m Machine) serial() aml {
	var out aml
	for i, s := range m.Serial {
		out = join(out, device(fmt.Sprintf("COM%d", i+1),
			named("_HID", eisaID("PNP0501")), named("_UID", integer(uint64(i))),
			named("_CRS", resources(ioPorts(s.Port, 8), interrupt(s.GSI))),
		))
	}
	return out
}
