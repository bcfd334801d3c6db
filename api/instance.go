package api

import "time"

// Kind is the wall around a guest.
type Kind string

// The three models of server virtualization.
const (
	KindContainer Kind = "container" // OS level: the host's kernel, namespaces
	KindPVM       Kind = "pvm"       // paravirtual: a kernel ported to the monitor
	KindVM        Kind = "vm"        // full virtualization: unmodified systems
)

// Power is the state that a user wants a guest to be in.
type Power string

// Desired power states.
const (
	PowerRunning Power = "running"
	PowerStopped Power = "stopped"
	PowerPaused  Power = "paused"
)

// Phase is the state that a guest is in.
type Phase string

// Phases, in the order of a life.
const (
	PhaseCreating Phase = "creating" // image and root volume are being made
	PhaseStopped  Phase = "stopped"  // no process; Status.Exit says how it ended
	PhaseStarting Phase = "starting"
	PhaseRunning  Phase = "running"
	PhasePaused   Phase = "paused"
	PhaseFailed   Phase = "failed" // could not be created or started; Status.Error says why
	PhaseDeleting Phase = "deleting"
)

// RestartPolicy says what happens when the guest ends by itself.
type RestartPolicy string

// Restart policies.
const (
	RestartNever     RestartPolicy = "never"
	RestartOnFailure RestartPolicy = "on-failure"
	RestartAlways    RestartPolicy = "always"
)

// Instance is a guest.
type Instance struct {
	Meta
	Spec   InstanceSpec   `json:"spec"`
	Status InstanceStatus `json:"status,omitzero" readOnly:"true"`
}

// InstanceSpec is what the user wants. Zero values mean the image's own
// setting where it has one, else the default named at the field.
type InstanceSpec struct {
	Kind  Kind   `json:"kind,omitempty" enum:"container,pvm,vm" doc:"The wall; container if empty"`
	Image string `json:"image,omitempty" doc:"Image reference, like base, debian:bookworm or sha256:...; empty for a machine with an empty disk (machine.firmware)"`
	Power Power  `json:"power,omitempty" enum:"running,stopped,paused" doc:"Desired state"`

	Entrypoint  []string          `json:"entrypoint,omitempty" doc:"Replaces the image's entry point; the image's command is then not used"`
	Command     []string          `json:"command,omitempty" doc:"Replaces the image's command (the arguments of its entry point)"`
	Env         map[string]string `json:"env,omitempty"`
	User        string            `json:"user,omitempty" doc:"USER or UID, with :GROUP or :GID"`
	WorkDir     string            `json:"workDir,omitempty"`
	Hostname    string            `json:"hostname,omitempty" doc:"The instance's name if empty"`
	StopSignal  string            `json:"stopSignal,omitempty" doc:"SIGTERM if empty; a system guest gets its init's own"`
	StopSeconds *int              `json:"stopSeconds,omitempty" minimum:"0" doc:"Seconds between the stop signal and SIGKILL; 10 if empty, 60 for a system guest"`
	TTY         bool              `json:"tty,omitempty" doc:"Give the entry point a terminal"`
	Stdin       bool              `json:"stdin,omitempty" doc:"Keep standard input open for attaching; else it is /dev/null"`
	Init        *bool             `json:"init,omitempty" doc:"Treat as a system guest: the entry point becomes PID 1 of the whole tree; found out from the image if empty"`

	Restart   RestartPolicy `json:"restart,omitempty" enum:"never,on-failure,always" doc:"never if empty"`
	Autostart bool          `json:"autostart,omitempty" doc:"Start with the host, also after it was down"`
	Ephemeral bool          `json:"ephemeral,omitempty" doc:"Delete when it stops"`

	Resources Resources         `json:"resources,omitzero"`
	Root      RootDisk          `json:"root,omitzero"`
	Mounts    []Mount           `json:"mounts,omitempty"`
	NICs      []NIC             `json:"nics,omitzero" doc:"One port on the default network if null; none if empty"`
	Publish   []Publish         `json:"publish,omitempty"`
	Health    *HealthCheck      `json:"health,omitempty" doc:"Replaces the image's health check"`
	Sysctls   map[string]string `json:"sysctls,omitempty" doc:"Only those that the kernel keeps per namespace; in a machine all"`
	Ulimits   map[string]Ulimit `json:"ulimits,omitempty" doc:"By name without RLIMIT_, like nofile"`
	ShmSize   Bytes             `json:"shmSize,omitempty" doc:"Size of /dev/shm; 64 MiB if empty"`
	Security  Security          `json:"security,omitzero"`
	Machine   Machine           `json:"machine,omitzero"`
}

// Machine is what only a guest with a kernel of its own has: kinds pvm and
// vm.
type Machine struct {
	Arch        string     `json:"arch,omitempty" enum:"amd64,arm64,riscv64" doc:"Architecture of the guest; the host's if empty"`
	Kernel      string     `json:"kernel,omitempty" doc:"Name of the kernel that boots the image; the default one of its kind if empty"`
	Firmware    string     `json:"firmware,omitempty" enum:"bios,uefi" doc:"What boots a disk image or an empty disk; bios if empty"`
	SecureBoot  bool       `json:"secureBoot,omitempty" doc:"UEFI with the makers' keys: starts only what they signed"`
	TPM         bool       `json:"tpm,omitempty" doc:"A virtual TPM 2.0"`
	ISO         string     `json:"iso,omitempty" doc:"Medium in the CD drive: name of an ISO image, or an absolute path on the host"`
	BootOrder   []string   `json:"bootOrder,omitempty" doc:"Of disk, cdrom and network; disk first, then cdrom if empty"`
	BootSeconds *int       `json:"bootSeconds,omitempty" minimum:"0" doc:"Seconds after which a system of its own is stopped of which the firmware says that there is nothing to boot; 300 if empty, 0 for never"`
	Accel       string     `json:"accel,omitempty" enum:"kvm,tcg" doc:"How instructions are executed; the faster one that works if empty"`
	Engine      string     `json:"engine,omitempty" enum:"qemu,vmm" doc:"What runs a guest of kind vm; the best that fits it if empty"`
	CloudInit   *CloudInit `json:"cloudInit,omitempty" doc:"Seed for cloud-init in a disk image"`
}

// CloudInit is what cloud-init in the guest finds at its first boot
// (data source NoCloud).
type CloudInit struct {
	UserData      string   `json:"userData,omitempty" doc:"As it is: #cloud-config, a script, ..."`
	SSHKeys       []string `json:"sshKeys,omitempty" doc:"Public keys for the system's default user"`
	NetworkConfig string   `json:"networkConfig,omitempty" doc:"Version 1 or 2; made from the ports' addresses if empty"`
	NoAgent       bool     `json:"noAgent,omitempty" doc:"Don't install the agent"`
}

// Resources bound what a guest may take. Zero means unlimited unless said
// otherwise. All may be changed while it runs.
type Resources struct {
	CPUs       float64 `json:"cpus,omitempty" minimum:"0" doc:"CPU time in units of one CPU; fractions allowed. A machine has as many virtual CPUs, rounded up, and one if empty"`
	CPUWeight  int     `json:"cpuWeight,omitempty" minimum:"0" maximum:"10000" doc:"Share under contention, 1 to 10000; 100 if empty"`
	CPUSet     string  `json:"cpuSet,omitempty" doc:"CPUs it may run on, like 0-1,4"`
	Memory     Bytes   `json:"memory,omitempty" minimum:"0" doc:"Hard limit in bytes. Of a machine its RAM: 256 MiB if empty, 512 MiB for a system guest, 1 GiB for a system of its own"`
	MemorySoft Bytes   `json:"memorySoft,omitempty" minimum:"0" doc:"Under host pressure it is pushed back to this"`
	Swap       Bytes   `json:"swap,omitempty" minimum:"0" doc:"Swap beyond memory; none if empty"`
	PIDs       int64   `json:"pids,omitempty" minimum:"0" doc:"Processes and threads, 16 at least; 4096 if empty (32768 for a system guest). In a system of its own nobody counts them"`
	DiskRead   Bytes   `json:"diskRead,omitempty" minimum:"0" doc:"Bytes per second"`
	DiskWrite  Bytes   `json:"diskWrite,omitempty" minimum:"0" doc:"Bytes per second"`
	DiskReadIO int64   `json:"diskReadOps,omitempty" minimum:"0" doc:"Operations per second"`
	DiskWriteO int64   `json:"diskWriteOps,omitempty" minimum:"0" doc:"Operations per second"`
	NetIn      Bytes   `json:"netIn,omitempty" minimum:"0" doc:"Bytes per second into the guest, per port"`
	NetOut     Bytes   `json:"netOut,omitempty" minimum:"0" doc:"Bytes per second out of the guest, per port"`
}

// RootDisk is the writable layer over the image.
type RootDisk struct {
	Pool string `json:"pool,omitempty" doc:"Pool of the root volume; \"default\" if empty"`
	Size Bytes  `json:"size,omitempty" minimum:"0" doc:"Bytes the guest may write, of a machine the size of its disk; 10 GiB if empty"`
}

// Mount brings a volume or a directory of the host into the guest.
type Mount struct {
	Volume   string `json:"volume,omitempty" doc:"Name of a volume in the same project"`
	HostPath string `json:"hostPath,omitempty" doc:"Absolute path on the host; the caller must be root there"`
	Target   string `json:"target" doc:"Absolute path in the guest; a system of its own mounts its disks itself"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// NIC is a guest's port on a network.
type NIC struct {
	Network string `json:"network,omitempty" doc:"\"default\" if empty"`
	Name    string `json:"name,omitempty" doc:"Interface name in the guest; eth0, eth1, ... if empty"`
	MAC     string `json:"mac,omitempty" doc:"Derived from the instance's id if empty"`
	IPv4    string `json:"ipv4,omitempty" doc:"Fixed address; leased if empty"`
	IPv6    string `json:"ipv6,omitempty" doc:"Fixed address; leased if empty"`
}

// Publish forwards a port of the host to the guest.
type Publish struct {
	HostIP    string `json:"hostIP,omitempty" doc:"All addresses if empty"`
	HostPort  int    `json:"hostPort" minimum:"1" maximum:"65535"`
	GuestPort int    `json:"guestPort" minimum:"1" maximum:"65535"`
	Protocol  string `json:"protocol,omitempty" enum:"tcp,udp" doc:"tcp if empty"`
}

// HealthCheck runs a command in the guest; exit status 0 is healthy.
type HealthCheck struct {
	Command         []string `json:"command,omitempty" doc:"Empty turns the image's check off"`
	IntervalSeconds int      `json:"intervalSeconds,omitempty" minimum:"0" doc:"30 if empty"`
	TimeoutSeconds  int      `json:"timeoutSeconds,omitempty" minimum:"0" doc:"30 if empty"`
	StartSeconds    int      `json:"startSeconds,omitempty" minimum:"0" doc:"Failures don't count this long after start"`
	Retries         int      `json:"retries,omitempty" minimum:"0" doc:"Failures in a row until unhealthy; 3 if empty"`
}

// Ulimit is a soft and a hard limit; -1 is unlimited.
type Ulimit struct {
	Soft int64 `json:"soft"`
	Hard int64 `json:"hard"`
}

// Security loosens or tightens the wall of a container. Anything looser than
// the default shows in status.
type Security struct {
	AddCapabilities  []string `json:"addCapabilities,omitempty" doc:"Like NET_RAW; they count inside the guest's own user namespace only"`
	DropCapabilities []string `json:"dropCapabilities,omitempty" doc:"Like CHOWN, or ALL"`
	NoNewPrivileges  bool     `json:"noNewPrivileges,omitempty" doc:"set-user-ID programs have no effect"`
	ReadOnlyRoot     bool     `json:"readOnlyRoot,omitempty"`
}

// InstanceStatus is how far the host has come.
type InstanceStatus struct {
	Phase   Phase  `json:"phase,omitempty"`
	Error   *Error `json:"error,omitempty" doc:"Why it failed"`
	Host    string `json:"host,omitempty"`
	Engine  string `json:"engine,omitempty"`
	System  bool   `json:"system,omitempty" doc:"The entry point is an init system"`
	Digest  string `json:"digest,omitempty" doc:"Digest of the image it was made from"`
	Epoch   int64  `json:"epoch,omitempty" doc:"Owner epoch: grows with every start"`
	PID     int    `json:"pid,omitempty" doc:"PID on the host of the guest's first process"`
	Volume  string `json:"volume,omitempty" doc:"Name of its root volume in the pool; i- and its id if empty"`
	UIDBase uint32 `json:"uidBase,omitempty" doc:"Host uid of the guest's root; 65536 ids from there are its own"`

	Started *time.Time  `json:"started,omitempty"`
	Stopped *time.Time  `json:"stopped,omitempty"`
	Exit    *ExitStatus `json:"exit,omitempty" doc:"How it last ended"`
	// Restarts counts restarts by policy since the last start by a user.
	Restarts int `json:"restarts,omitempty"`
	// Reboots counts those that the guest did without ending.
	Reboots    int        `json:"reboots,omitempty"`
	Health     string     `json:"health,omitempty" doc:"starting, healthy or unhealthy; empty without a check"`
	NICs       []Port     `json:"nics,omitempty" doc:"Its ports; while it runs those that the guest has"`
	Agent      string     `json:"agent,omitempty" doc:"Of a machine: cleave, qemu (only QEMU's own guest agent) or none"`
	Kernel     string     `json:"kernel,omitempty" doc:"Of a machine: the kernel that booted it"`
	Accel      string     `json:"accel,omitempty" doc:"Of a machine: kvm, tcg or ptrace"`
	Saved      bool       `json:"saved,omitempty" doc:"Its memory is kept; the next start goes on from there"`
	LastScreen *time.Time `json:"lastScreen,omitempty" doc:"When the picture of its screen was taken that is kept of it"`
	Lost       []string   `json:"lost,omitempty" doc:"What a crash of the keeper took: console, exit status, ..."`
	Loosened   []string   `json:"loosened,omitempty" doc:"Ways in which this wall is thinner than the default"`
	// Running is there only while something of Spec waits.
	Running *InstanceSpec `json:"running,omitempty" doc:"What the guest runs with, where that is not yet what spec says: its next start brings that, or of a paused machine its resume"`
}

// ExitStatus is how a guest's entry point ended.
type ExitStatus struct {
	Code      int    `json:"code" doc:"Exit status, or 128 plus the signal's number; -1 if it was lost"`
	Signal    string `json:"signal,omitempty" doc:"Like SIGKILL"`
	OOMKilled bool   `json:"oomKilled,omitempty"`
	// Reason tells how a machine ended.
	Reason string `json:"reason,omitempty" enum:"exit,poweroff,reboot,panic,crash,killed,no-boot" doc:"Of a machine: exit of the entry point, poweroff or reboot by the guest, panic of its kernel, crash of its monitor, killed, no-boot: its firmware found nothing to boot"`
}

// Port is a NIC that exists.
type Port struct {
	Network string `json:"network"`
	Name    string `json:"name" doc:"Interface name in the guest"`
	Slot    int    `json:"slot,omitempty" doc:"Which of its ports it is, from 1; others keep theirs when it goes"`
	Link    string `json:"link,omitempty" doc:"Interface name on the host while it runs"`
	MAC     string `json:"mac"`
	IPv4    string `json:"ipv4,omitempty"`
	IPv6    string `json:"ipv6,omitempty"`
}

// Attachment is one device that an instance gets: a mount or a port.
type Attachment struct {
	Mount *Mount `json:"mount,omitempty"`
	NIC   *NIC   `json:"nic,omitempty"`
}

// Detachment names one device that is taken from an instance: a volume or a
// directory of the host, by its name or path or by its target, or a port, by
// its network or its interface name.
type Detachment struct {
	Volume   string `json:"volume,omitempty" doc:"Name of a volume"`
	HostPath string `json:"hostPath,omitempty"`
	Target   string `json:"target,omitempty" doc:"Where it is in the guest; needed if it is there more than once"`
	Network  string `json:"network,omitempty" doc:"Name of a network"`
	NIC      string `json:"nic,omitempty" doc:"Interface name in the guest; needed if it has several ports on the network"`
}

// Stats are counters and gauges of one running instance at Time.
type Stats struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Project  string    `json:"project"`
	Time     time.Time `json:"time"`
	CPUNanos uint64    `json:"cpuNanos" doc:"CPU time used, nanoseconds"`
	// Throttled is the time runnable but held back by the cpus limit.
	ThrottledNanos uint64           `json:"throttledNanos"`
	Memory         Bytes            `json:"memory" doc:"In use, without cache that can be dropped at once"`
	MemoryCache    Bytes            `json:"memoryCache"`
	MemoryLimit    Bytes            `json:"memoryLimit,omitempty"`
	Swap           Bytes            `json:"swap"`
	OOMKills       uint64           `json:"oomKills"`
	PIDs           int64            `json:"pids"`
	Disk           Bytes            `json:"disk" doc:"Bytes the root volume holds"`
	DiskLimit      Bytes            `json:"diskLimit,omitempty"`
	ReadBytes      uint64           `json:"readBytes"`
	WriteBytes     uint64           `json:"writeBytes"`
	ReadOps        uint64           `json:"readOps"`
	WriteOps       uint64           `json:"writeOps"`
	RxBytes        uint64           `json:"rxBytes" doc:"Received by the guest"`
	TxBytes        uint64           `json:"txBytes" doc:"Sent by the guest"`
	RxPackets      uint64           `json:"rxPackets"`
	TxPackets      uint64           `json:"txPackets"`
	Dropped        uint64           `json:"dropped" doc:"Packets dropped both ways"`
	Pressure       map[string]Stall `json:"pressure,omitempty" doc:"By cpu, memory, io; absent where the kernel has no PSI for the guest"`
}

// Stall is pressure stall information (Documentation/accounting/psi.rst):
// the share of the last ten seconds, in percent, and the total in µs.
type Stall struct {
	Some10    float64 `json:"some10"`
	Full10    float64 `json:"full10"`
	SomeTotal uint64  `json:"someTotal"`
	FullTotal uint64  `json:"fullTotal"`
}
