package settings

import (
	"slices"

	"github.com/cleave-project/cleave/api"
)

// Section groups settings in help texts.
type Section string

// Sections, in the order in which help shows them.
const (
	Process   Section = "Process"
	Life      Section = "Life cycle"
	Limits    Section = "Resources"
	Storage   Section = "Storage"
	Net       Section = "Network"
	Health    Section = "Health check"
	Isolation Section = "Isolation"
	Hardware  Section = "Machine"
)

// Sections lists them all.
var Sections = []Section{Process, Life, Limits, Storage, Net, Health, Isolation, Hardware}

// Setting is one thing that can be said about a resource.
type Setting struct {
	Key     string   // in set and stack files, like memory.soft
	Aliases []string // other spellings of Key
	Flag    string   // on the command line, like memory-soft; none if empty
	Short   string   // one-letter flag
	Value   string   // placeholder of the value, like SIZE
	Doc     string
	Section Section
	Choices []string
	Path    string // in the API's resource, like spec.resources.memorySoft
	Fixed   bool   // chosen when the resource is made, and never changed

	parse parser
	shape shape
}

// shape is how the texts of a setting combine.
type shape int

const (
	single shape = iota // one value
	list                // values in a row
	table               // named entries: KEY.NAME
)

// IsList and IsMap tell whether a setting takes many values, and whether
// they have names.
func (s *Setting) IsList() bool { return s.shape == list }

// IsMap tells whether the setting has named entries, written KEY.NAME.
func (s *Setting) IsMap() bool { return s.shape == table }

// IsSwitch tells whether the setting is on or off.
func (s *Setting) IsSwitch() bool { return s.Value == "" }

// Table is all that can be said about one kind of resource.
type Table []*Setting

// Instance is the table of instances, ordered by section and use.
var Instance = slices.Concat(
	ofProcess.in(Process), ofLife.in(Life), ofLimits.in(Limits), ofStorage.in(Storage),
	ofNet.in(Net), ofHealth.in(Health), ofIsolation.in(Isolation), ofHardware.in(Hardware),
)

// in puts the settings in a section.
func (t Table) in(s Section) Table {
	for _, x := range t {
		x.Section = s
	}
	return t
}

var ofProcess = Table{
	{
		Key: "kind", Flag: "kind", Value: "KIND", Path: "spec.kind", parse: text,
		Choices: []string{string(api.KindContainer), string(api.KindPVM), string(api.KindVM)}, Doc: "the wall around the guest",
	},
	{Key: "image", Value: "IMAGE", Path: "spec.image", Fixed: true, parse: text, Doc: "image it is made from"},
	{Key: "command", Value: "COMMAND", Path: "spec.command", parse: words, Doc: "arguments for the entry point"},
	{Key: "entrypoint", Flag: "entrypoint", Value: "COMMAND", Path: "spec.entrypoint", parse: words, Doc: "replace the image's entry point"},
	{
		Key: "env", Flag: "env", Short: "e", Value: "NAME=VALUE", Path: "spec.env", parse: text, shape: table,
		Doc: "environment variable; NAME alone takes it from here",
	},
	{Key: "user", Flag: "user", Short: "u", Value: "USER[:GROUP]", Path: "spec.user", parse: text, Doc: "user of the entry point"},
	{Key: "workdir", Flag: "workdir", Short: "w", Value: "DIR", Path: "spec.workDir", parse: text, Doc: "working directory of the entry point"},
	{Key: "hostname", Flag: "hostname", Value: "NAME", Path: "spec.hostname", parse: text, Doc: "host name (default: the instance's name)"},
	{
		Key: "system", Aliases: []string{"init"}, Flag: "system", Path: "spec.init", parse: boolean,
		Doc: "treat the entry point as an init system (default: found out from the image)",
	},
	{Key: "tty", Path: "spec.tty", parse: boolean, Doc: "give the entry point a terminal"},
	{Key: "stdin", Path: "spec.stdin", parse: boolean, Doc: "keep standard input open for attaching"},
	{Key: "labels", Aliases: []string{"label"}, Flag: "label", Short: "l", Value: "NAME=VALUE", Path: "labels", parse: text, shape: table, Doc: "label to select it by"},
}

var ofLife = Table{
	{
		Key: "power", Value: "STATE", Path: "spec.power", parse: text,
		Choices: []string{string(api.PowerRunning), string(api.PowerStopped), string(api.PowerPaused)}, Doc: "state it shall be in",
	},
	{
		Key: "restart", Flag: "restart", Value: "POLICY", Path: "spec.restart", parse: text,
		Choices: []string{string(api.RestartNever), string(api.RestartOnFailure), string(api.RestartAlways)}, Doc: "what happens when it ends by itself",
	},
	{Key: "autostart", Flag: "autostart", Path: "spec.autostart", parse: boolean, Doc: "start with the host"},
	{Key: "ephemeral", Flag: "ephemeral", Path: "spec.ephemeral", parse: boolean, Doc: "delete it when it stops"},
	{Key: "stop.signal", Flag: "stop-signal", Value: "SIGNAL", Path: "spec.stopSignal", parse: text, Doc: "signal that asks it to stop"},
	{Key: "stop.timeout", Flag: "stop-timeout", Value: "TIME", Path: "spec.stopSeconds", parse: seconds, Doc: "time between that signal and SIGKILL"},
}

var ofLimits = Table{
	{Key: "cpus", Flag: "cpus", Value: "N", Path: "spec.resources.cpus", parse: fraction, Doc: "CPUs it may use, like 0.5"},
	{Key: "cpu.weight", Flag: "cpu-weight", Value: "N", Path: "spec.resources.cpuWeight", parse: count, Doc: "share of CPU under contention, 1 to 10000 (default 100)"},
	{Key: "cpu.set", Flag: "cpu-set", Value: "LIST", Path: "spec.resources.cpuSet", parse: text, Doc: "CPUs it may run on, like 0-1,4"},
	{Key: "memory", Flag: "memory", Short: "m", Value: "SIZE", Path: "spec.resources.memory", parse: size, Doc: "memory limit, like 512MiB"},
	{Key: "memory.soft", Flag: "memory-soft", Value: "SIZE", Path: "spec.resources.memorySoft", parse: size, Doc: "pushed back to this when the host is short of memory"},
	{Key: "swap", Flag: "swap", Value: "SIZE", Path: "spec.resources.swap", parse: size, Doc: "swap beyond the memory limit (default none)"},
	{Key: "pids", Flag: "pids", Value: "N", Path: "spec.resources.pids", parse: count, Doc: "processes and threads it may have"},
	{Key: "shm-size", Flag: "shm-size", Value: "SIZE", Path: "spec.shmSize", parse: size, Doc: "size of /dev/shm (default 64MiB)"},
	{Key: "disk.read", Flag: "disk-read", Value: "SIZE/s", Path: "spec.resources.diskRead", parse: rate, Doc: "bytes read per second"},
	{Key: "disk.write", Flag: "disk-write", Value: "SIZE/s", Path: "spec.resources.diskWrite", parse: rate, Doc: "bytes written per second"},
	{Key: "disk.read-ops", Flag: "disk-read-ops", Value: "N", Path: "spec.resources.diskReadOps", parse: count, Doc: "reads per second"},
	{Key: "disk.write-ops", Flag: "disk-write-ops", Value: "N", Path: "spec.resources.diskWriteOps", parse: count, Doc: "writes per second"},
	{Key: "net.in", Flag: "net-in", Value: "SIZE/s", Path: "spec.resources.netIn", parse: rate, Doc: "bytes per second into the guest"},
	{Key: "net.out", Flag: "net-out", Value: "SIZE/s", Path: "spec.resources.netOut", parse: rate, Doc: "bytes per second out of the guest"},
}

var ofStorage = Table{
	{Key: "disk", Aliases: []string{"disk.size", "root.size"}, Flag: "disk", Value: "SIZE", Path: "spec.root.size", parse: size, Doc: "how much it may write to its root (default 10GiB)"},
	{Key: "pool", Aliases: []string{"root.pool"}, Flag: "pool", Value: "POOL", Path: "spec.root.pool", Fixed: true, parse: text, Doc: "pool of the root volume"},
	{
		Key: "volumes", Aliases: []string{"volume"}, Flag: "volume", Short: "v", Value: "VOLUME|/DIR:TARGET[:ro]", Path: "spec.mounts", parse: mount, shape: list,
		Doc: "volume, or directory of the host, at TARGET in the guest",
	},
}

var ofNet = Table{
	{
		Key: "networks", Aliases: []string{"network"}, Flag: "network", Value: "NETWORK[:ip=ADDR]", Path: "spec.nics", parse: nic, shape: list,
		Doc: "port on a network; further options after commas: ip6=, mac=, name=; 'none' for no network",
	},
	{
		Key: "publish", Flag: "publish", Short: "p", Value: "[IP:]HOST:GUEST[/udp]", Path: "spec.publish", parse: publish, shape: list,
		Doc: "forward a port (or range) of the host to the guest",
	},
}

var ofHealth = Table{
	{Key: "health.command", Flag: "health-cmd", Value: "COMMAND", Path: "spec.health.command", parse: shellCommand, Doc: "healthy while this exits with 0; empty turns the image's check off"},
	{Key: "health.interval", Flag: "health-interval", Value: "TIME", Path: "spec.health.intervalSeconds", parse: seconds, Doc: "time between checks (default 30s)"},
	{Key: "health.timeout", Flag: "health-timeout", Value: "TIME", Path: "spec.health.timeoutSeconds", parse: seconds, Doc: "time that a check may take (default 30s)"},
	{Key: "health.start", Flag: "health-start", Value: "TIME", Path: "spec.health.startSeconds", parse: seconds, Doc: "time after start in which failures don't count"},
	{Key: "health.retries", Flag: "health-retries", Value: "N", Path: "spec.health.retries", parse: count, Doc: "failures in a row until unhealthy (default 3)"},
}

var ofIsolation = Table{
	{Key: "cap.add", Flag: "cap-add", Value: "CAP", Path: "spec.security.addCapabilities", parse: capability, shape: list, Doc: "add a capability, like NET_RAW"},
	{Key: "cap.drop", Flag: "cap-drop", Value: "CAP", Path: "spec.security.dropCapabilities", parse: capability, shape: list, Doc: "take a capability away, or ALL"},
	{Key: "no-new-privileges", Flag: "no-new-privileges", Path: "spec.security.noNewPrivileges", parse: boolean, Doc: "set-user-ID programs have no effect"},
	{Key: "read-only", Flag: "read-only", Path: "spec.security.readOnlyRoot", parse: boolean, Doc: "root file system can't be written"},
	{Key: "sysctls", Aliases: []string{"sysctl"}, Flag: "sysctl", Value: "NAME=VALUE", Path: "spec.sysctls", parse: text, shape: table, Doc: "kernel parameter of the guest's own namespaces; any of a machine"},
	{Key: "ulimits", Aliases: []string{"ulimit"}, Flag: "ulimit", Value: "NAME=SOFT[:HARD]", Path: "spec.ulimits", parse: ulimit, shape: table, Doc: "resource limit, like nofile=1024:4096"},
}

var ofHardware = Table{
	{
		Key: "arch", Flag: "arch", Value: "ARCH", Path: "spec.machine.arch", Fixed: true, parse: text,
		Choices: []string{"amd64", "arm64", "riscv64"}, Doc: "architecture of the guest (default: the host's)",
	},
	{Key: "kernel", Flag: "kernel", Value: "KERNEL", Path: "spec.machine.kernel", parse: text, Doc: "kernel of the host that boots the image (default: its kind's)"},
	{
		Key: "firmware", Aliases: []string{"boot"}, Value: "FIRMWARE", Path: "spec.machine.firmware", parse: text,
		Choices: []string{"bios", "uefi"}, Doc: "firmware that boots a disk",
	},
	{Key: "boot-order", Flag: "boot-order", Value: "DEVICE", Path: "spec.machine.bootOrder", parse: devices, shape: list, Doc: "what is tried, of disk, cdrom and network, separated by commas (default disk,cdrom)"},
	{Key: "boot-timeout", Flag: "boot-timeout", Value: "TIME", Path: "spec.machine.bootSeconds", parse: seconds, Doc: "stop it when its firmware has found nothing to boot by then (default 5m; 0 for never)"},
	{Key: "secure-boot", Flag: "secure-boot", Path: "spec.machine.secureBoot", parse: boolean, Doc: "UEFI that starts only what the makers signed"},
	{Key: "tpm", Flag: "tpm", Path: "spec.machine.tpm", parse: boolean, Doc: "virtual TPM 2.0"},
	{Key: "iso", Flag: "iso", Value: "IMAGE|FILE", Path: "spec.machine.iso", parse: medium, Doc: "medium in the CD drive: an imported one, or a file of the host"},
	{
		Key: "accel", Flag: "accel", Value: "ACCEL", Path: "spec.machine.accel", parse: text,
		Choices: []string{"kvm", "tcg"}, Doc: "how instructions are executed (default: the faster one that works)",
	},
	{
		Key: "engine", Flag: "engine", Value: "ENGINE", Path: "spec.machine.engine", parse: text,
		Choices: []string{"qemu", "vmm"}, Doc: "what runs a guest of kind vm (default: the best that fits it)",
	},
	{Key: "cloud-init.user-data", Value: "TEXT", Path: "spec.machine.cloudInit.userData", parse: text, Doc: "user data for cloud-init in a disk image"},
	{
		Key: "cloud-init.ssh-keys", Aliases: []string{"ssh-key", "ssh-keys"}, Flag: "ssh-key", Value: "FILE|KEY", Path: "spec.machine.cloudInit.sshKeys", parse: sshKeys, shape: list,
		Doc: "public key for the default user of a disk image, by cloud-init",
	},
	{Key: "cloud-init.network-config", Value: "TEXT", Path: "spec.machine.cloudInit.networkConfig", parse: text, Doc: "network configuration for cloud-init (default: made from the ports)"},
	{Key: "cloud-init.no-agent", Flag: "no-agent", Path: "spec.machine.cloudInit.noAgent", parse: boolean, Doc: "have cloud-init not install the agent"},
}
