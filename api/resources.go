package api

import "time"

// Image is a read-only root file system on this host.
type Image struct {
	Digest   string      `json:"digest" doc:"Digest of the image manifest"`
	Names    []string    `json:"names" doc:"References that point here, like docker.io/library/debian:bookworm"`
	Created  time.Time   `json:"created,omitzero" doc:"When it came to this host"`
	Size     Bytes       `json:"size" doc:"Size of the EROFS file"`
	Platform string      `json:"platform" doc:"Like linux/amd64"`
	Source   string      `json:"source,omitempty" doc:"Where it came from"`
	System   bool        `json:"system,omitempty" doc:"Its entry point is an init system"`
	Type     string      `json:"type,omitempty" enum:"root,disk,iso" doc:"root: a root file system for every kind. disk: a system of its own on a disk. iso: an installer's or another medium"`
	DiskSize Bytes       `json:"diskSize,omitempty" doc:"Of a disk: what the guest sees"`
	Firmware string      `json:"firmware,omitempty" doc:"Of a disk: bios or uefi, as its partitions suggest"`
	UsedBy   []string    `json:"usedBy,omitempty" doc:"Instances, as project/name"`
	Config   ImageConfig `json:"config"`
}

// ImageConfig is the part of the OCI image configuration that Cleave obeys
// (OCI image-spec config.md).
type ImageConfig struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty" doc:"KEY=VALUE"`
	User         string            `json:"user,omitempty"`
	WorkDir      string            `json:"workDir,omitempty"`
	StopSignal   string            `json:"stopSignal,omitempty"`
	Volumes      []string          `json:"volumes,omitempty"`
	ExposedPorts []string          `json:"exposedPorts,omitempty" doc:"Like 80/tcp"`
	Labels       map[string]string `json:"labels,omitempty"`
	Health       *HealthCheck      `json:"health,omitempty"`
}

// ImagePull asks for an image from a registry.
type ImagePull struct {
	Reference string        `json:"reference" doc:"As Docker users write it"`
	Platform  string        `json:"platform,omitempty" doc:"os/arch[/variant]; the host's if empty"`
	PlainHTTP bool          `json:"plainHTTP,omitempty" doc:"Allow a registry without TLS; always allowed on loopback"`
	Auth      *RegistryAuth `json:"auth,omitempty" doc:"Else the daemon's Docker configuration is used"`
}

// RegistryAuth are a registry's credentials.
type RegistryAuth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	Token         string `json:"token,omitempty" doc:"Bearer token instead of a password"`
	IdentityToken string `json:"identityToken,omitempty" doc:"Refresh token of OAuth 2 instead of a password"`
}

// ImageBuild asks for an image made by the system's own bootstrap tool.
type ImageBuild struct {
	Base    string   `json:"base" doc:"DISTRIBUTION:RELEASE, like debian:bookworm"`
	Name    string   `json:"name,omitempty" doc:"Name of the result; Base if empty"`
	Include []string `json:"include,omitempty" doc:"Further packages"`
	System  bool     `json:"system,omitempty" doc:"With an init system as entry point"`
	Mirror  string   `json:"mirror,omitempty" doc:"Package mirror; the host's own sources if empty"`
}

// Kernel is one that boots images in machines: a bootable kernel, or the
// program linux.uml, with its modules.
type Kernel struct {
	Name    string    `json:"name" doc:"Like 6.1.0-32-cloud-amd64"`
	Kind    Kind      `json:"kind" enum:"pvm,vm"`
	Arch    string    `json:"arch" doc:"As Go names it: amd64, arm64, riscv64"`
	Version string    `json:"version" doc:"Release, as uname -r says"`
	Default bool      `json:"default,omitempty" doc:"What instances of its kind and architecture get unless they name one"`
	Source  string    `json:"source,omitempty" doc:"Where it came from"`
	Created time.Time `json:"created"`
	Size    Bytes     `json:"size" doc:"On the host's disk"`
	UsedBy  []string  `json:"usedBy,omitempty" doc:"Instances that name it, as project/name"`
}

// KernelFetch asks for a distribution's own kernel package.
type KernelFetch struct {
	Distribution string `json:"distribution" enum:"debian" doc:"debian: the cloud kernel for vm, user-mode-linux for pvm"`
	Kind         Kind   `json:"kind,omitempty" enum:"pvm,vm" doc:"vm if empty"`
	Arch         string `json:"arch,omitempty" doc:"The host's if empty"`
	Default      bool   `json:"default,omitempty" doc:"Make it the default one; so is the first of its kind and architecture"`
}

// KernelAdd says where on the host a kernel is.
type KernelAdd struct {
	Name    string `json:"name,omitempty" doc:"Its release if empty"`
	Kind    Kind   `json:"kind,omitempty" enum:"pvm,vm" doc:"Found out from the file if empty"`
	Image   string `json:"image" doc:"Absolute path: a bootable kernel, linux.uml, or a .deb package with either; host for the running kernel's files"`
	Modules string `json:"modules,omitempty" doc:"Absolute path of its modules' directory, with modules.dep; none if all is built in"`
	Default bool   `json:"default,omitempty"`
}

// Pool is a place where volumes live.
type Pool struct {
	Meta
	Spec   PoolSpec   `json:"spec"`
	Status PoolStatus `json:"status,omitzero" readOnly:"true"`
}

// PoolSpec says what a pool is made of.
type PoolSpec struct {
	Driver string `json:"driver" enum:"btrfs,dir"`
	Source string `json:"source,omitempty" doc:"Directory on the host; below the data directory if empty. For btrfs a directory on a btrfs, or where a loop file is made"`
	Size   Bytes  `json:"size,omitempty" minimum:"0" doc:"Most that a loop file may grow to; as large as its disk allows if empty"`
}

// PoolStatus is what the driver reports.
type PoolStatus struct {
	State string `json:"state,omitempty" doc:"ready, or why not"`
	Path  string `json:"path,omitempty"`
	Total Bytes  `json:"total"`
	Used  Bytes  `json:"used"`
	// Quota tells how volume sizes are enforced: squota, qgroup, project, loop.
	Quota   string `json:"quota,omitempty"`
	Reflink bool   `json:"reflink"`
	Volumes int    `json:"volumes"`
}

// Types of volumes.
const (
	VolumeTree = "tree"
	VolumeDisk = "disk"
)

// Types of images.
const (
	ImageRoot = "root"
	ImageDisk = "disk"
	ImageISO  = "iso"
)

// Volume is a writable file tree, or a disk, that outlives instances.
type Volume struct {
	Meta
	Spec   VolumeSpec   `json:"spec"`
	Status VolumeStatus `json:"status,omitzero" readOnly:"true"`
}

// VolumeSpec says where a volume lives and how large it may get.
type VolumeSpec struct {
	Pool string `json:"pool,omitempty" doc:"\"default\" if empty"`
	Size Bytes  `json:"size,omitempty" minimum:"0" doc:"Bytes; unlimited if empty, 10 GiB for a disk"`
	Type string `json:"type,omitempty" enum:"tree,disk" doc:"tree: files on the host's file system, for containers. disk: a disk with a file system of its own, for machines. tree if empty"`
}

// VolumeStatus is what the driver reports.
type VolumeStatus struct {
	// Disk is there only while it is smaller than the size in the spec.
	Disk   Bytes    `json:"disk,omitempty" doc:"Of type disk: how large its guests find it until their next start"`
	Used   Bytes    `json:"used"`
	UsedBy []string `json:"usedBy,omitempty" doc:"Instances, by name"`
}

// Network is a virtual switch with its subnets and policy.
type Network struct {
	Meta
	Spec   NetworkSpec   `json:"spec"`
	Status NetworkStatus `json:"status,omitzero" readOnly:"true"`
}

// NetworkSpec says what a network offers. Empty subnets are chosen so that
// they clash with nothing on the host, and then stay.
type NetworkSpec struct {
	IPv4   string `json:"ipv4,omitempty" doc:"Subnet as CIDR, chosen if empty, \"none\" for none"`
	IPv6   string `json:"ipv6,omitempty" doc:"Subnet as CIDR, chosen (a unique local one) if empty, \"none\" for none"`
	NAT    *bool  `json:"nat,omitempty" doc:"Masquerade traffic that leaves; true if empty"`
	Domain string `json:"domain,omitempty" doc:"DNS domain of the guests' names; \"cleave\" if empty"`
	MTU    int    `json:"mtu,omitempty" minimum:"0" maximum:"65535" doc:"1500 if empty"`
}

// NetworkStatus is what the host made of it.
type NetworkStatus struct {
	State  string   `json:"state,omitempty" doc:"ready, or why not"`
	Bridge string   `json:"bridge,omitempty" doc:"Interface name on the host"`
	IPv4   string   `json:"ipv4,omitempty" doc:"Gateway with prefix length, like 10.83.0.1/24"`
	IPv6   string   `json:"ipv6,omitempty"`
	UsedBy []string `json:"usedBy,omitempty" doc:"Instances, by name"`
}

// OperationState is where an operation stands.
type OperationState string

// Operation states.
const (
	OperationPending   OperationState = "pending"
	OperationRunning   OperationState = "running"
	OperationDone      OperationState = "done"
	OperationFailed    OperationState = "failed"
	OperationCancelled OperationState = "cancelled"
)

// Operation is a durable, cancellable record of work in progress. It
// survives a restart of the daemon; when the work can't be taken up again
// it ends as failed and says so.
type Operation struct {
	Meta
	Verb    string         `json:"verb" doc:"Like instance.launch or image.pull"`
	Target  string         `json:"target" doc:"Name of what it works on"`
	State   OperationState `json:"state"`
	Error   *Error         `json:"error,omitempty"`
	Step    string         `json:"step,omitempty" doc:"What it is doing, for people"`
	Done    int64          `json:"done,omitempty" doc:"Progress in bytes (or items) of Total"`
	Total   int64          `json:"total,omitempty" doc:"0 while unknown"`
	Ended   *time.Time     `json:"ended,omitempty"`
	Result  string         `json:"result,omitempty" doc:"Name or digest of what it made"`
	Changes int64          `json:"changes" doc:"Grows with every change; give it to wait for the next"`
}

// Finished tells whether the operation has ended.
func (o *Operation) Finished() bool {
	return o.State == OperationDone || o.State == OperationFailed || o.State == OperationCancelled
}

// Event is something that happened. IDs grow and are never reused, also
// across restarts of the daemon.
type Event struct {
	ID      int64             `json:"id"`
	Time    time.Time         `json:"time"`
	Type    string            `json:"type" doc:"Like instance.started, image.pulled"`
	Project string            `json:"project,omitempty"`
	Name    string            `json:"name,omitempty"`
	Target  string            `json:"target,omitempty" doc:"ID of the resource"`
	Message string            `json:"message,omitempty"`
	Data    map[string]string `json:"data,omitempty"`
}

// Token is a bearer token for the API over TCP. Only its hash is kept.
type Token struct {
	Meta
	Hash    string     `json:"hash,omitempty" doc:"SHA-256 of the secret; never shown"`
	Secret  string     `json:"secret,omitempty" readOnly:"true" doc:"Shown once, in the answer that creates it"`
	Expires *time.Time `json:"expires,omitempty"`
	Used    *time.Time `json:"used,omitempty" readOnly:"true"`
}

// Finding is one line of the doctor's report.
type Finding struct {
	Area   string `json:"area" doc:"Like container, storage, network"`
	Name   string `json:"name" doc:"The capability"`
	State  string `json:"state" enum:"ok,limited,missing" doc:"missing: not on this host"`
	Detail string `json:"detail,omitempty" doc:"What was found"`
	Remedy string `json:"remedy,omitempty" doc:"What would change that"`
}

// HostInfo is the version and identity of a daemon.
type HostInfo struct {
	Version   string    `json:"version"`
	Host      string    `json:"host"`
	Kernel    string    `json:"kernel"`
	Started   time.Time `json:"started"`
	DataDir   string    `json:"dataDir"`
	RunDir    string    `json:"runDir"`
	CPUs      int       `json:"cpus"`
	Memory    Bytes     `json:"memory"`
	Instances int       `json:"instances"`
	Running   int       `json:"running"`
}

// ConsoleRequest asks for an attachment to the entry point's streams.
type ConsoleRequest struct {
	Stdin  bool `json:"stdin,omitempty"`
	Replay bool `json:"replay,omitempty" doc:"Begin with what was shown before, as far as kept"`
	Start  bool `json:"start,omitempty" doc:"Attach first, then start: no byte and no exit status is missed"`
}

// Ticket opens one stream once.
type Ticket struct {
	Ticket  string    `json:"ticket"`
	URL     string    `json:"url" doc:"Path of the WebSocket"`
	Expires time.Time `json:"expires"`
}

// FileInfo describes a file in a guest.
type FileInfo struct {
	Name   string    `json:"name"`
	Size   int64     `json:"size"`
	Mode   uint32    `json:"mode" doc:"Type and permission bits, as Go's fs.FileMode"`
	Time   time.Time `json:"time"`
	Target string    `json:"target,omitempty" doc:"Of a symbolic link"`
}
