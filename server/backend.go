package server

import (
	"context"
	"io"
	"net"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/control"
	"github.com/cleave-project/cleave/keeper"
)

// Backend is what the server serves: *control.Controller, or a fake in tests.
// Errors are *api.Error where the caller can act on them.
type Backend interface {
	InstanceBackend
	GuestBackend
	ImageBackend
	KernelBackend
	StorageBackend
	OperationBackend

	CreateToken(ctx context.Context, t *api.Token) (*api.Token, error)
	Tokens(ctx context.Context) ([]api.Token, error)
	DeleteToken(ctx context.Context, name string) error
	// CheckToken returns the token that a secret belongs to.
	CheckToken(secret string) (*api.Token, error)

	Info() api.HostInfo
	Doctor(ctx context.Context) []api.Finding
}

// InstanceBackend changes and lists instances. A revision of 0 stands for
// any.
type InstanceBackend interface {
	CreateInstance(ctx context.Context, in *api.Instance, start bool) (*api.Operation, error)
	Instance(project, name string) (*api.Instance, error)
	Instances(project string, q control.Query) (api.List[api.Instance], error)
	PatchInstance(ctx context.Context, project, name string, revision int64, patch []byte) (*api.Operation, error)
	AttachDevice(ctx context.Context, project, name string, a api.Attachment) (*api.Operation, error)
	DetachDevice(ctx context.Context, project, name string, d api.Detachment) (*api.Operation, error)
	RenameInstance(ctx context.Context, project, name, to string, revision int64) (*api.Operation, error)
	// ExportInstance writes the disk of a stopped machine.
	ExportInstance(ctx context.Context, project, name, format string, w io.Writer) error
	CopyInstance(ctx context.Context, project, name, to string, kind api.Kind) (*api.Operation, error)
	PowerInstance(ctx context.Context, project, name string, req control.PowerRequest) (*api.Operation, error)
	DeleteInstance(ctx context.Context, project, name string, force bool, revision int64) (*api.Operation, error)
}

// GuestBackend reaches into running guests.
type GuestBackend interface {
	Stats(ctx context.Context, project, name string) (api.Stats, error)
	// AllStats measures the running guests of a project, or of all if empty.
	AllStats(ctx context.Context, project string) ([]api.Stats, error)
	// Agent opens a connection to a guest's agent; the caller closes it.
	Agent(ctx context.Context, project, name string) (*agent.Client, error)
	// Console also tells whether the entry point has a terminal.
	Console(ctx context.Context, project, name string, opts control.ConsoleOptions) (*control.Console, bool, error)
	// VNC connects to a machine's screen; the caller closes it.
	VNC(ctx context.Context, project, name string) (net.Conn, error)
	// Screenshot returns a PNG.
	Screenshot(ctx context.Context, project, name string) ([]byte, error)
	// LastScreen is one that was kept.
	LastScreen(ctx context.Context, project, name string) ([]byte, error)
	Logs(ctx context.Context, project, name string, opts keeper.LogOptions, yield func(keeper.LogEntry) error) error
}

// ImageBackend keeps the images of this host.
type ImageBackend interface {
	PullImage(ctx context.Context, req api.ImagePull) (*api.Operation, error)
	BuildImage(ctx context.Context, req api.ImageBuild) (*api.Operation, error)
	// ImportImage takes an archive or a disk, of a format or of one to be found
	// out.
	ImportImage(ctx context.Context, name, format string, r io.Reader) (*api.Image, error)
	Images(ctx context.Context) ([]api.Image, error)
	Image(ctx context.Context, ref string) (*api.Image, error)
	DeleteImage(ctx context.Context, ref string, force bool) error
	ExportImage(ctx context.Context, ref, format string, w io.Writer) error
	PruneImages(ctx context.Context) (freed api.Bytes, digests []string, err error)
}

// KernelBackend keeps the kernels that boot images in machines.
type KernelBackend interface {
	AllKernels(ctx context.Context) ([]api.Kernel, error)
	Kernel(ctx context.Context, name string) (*api.Kernel, error)
	AddKernel(ctx context.Context, in api.KernelAdd) (*api.Kernel, error)
	ImportKernel(ctx context.Context, in api.KernelAdd, r io.Reader) (*api.Kernel, error)
	FetchKernel(ctx context.Context, in api.KernelFetch) (*api.Operation, error)
	SetDefaultKernel(ctx context.Context, name string) (*api.Kernel, error)
	DeleteKernel(ctx context.Context, name string) error
}

// StorageBackend keeps pools, volumes and networks. Pools belong to the host,
// the others to a project.
type StorageBackend interface {
	CreatePool(ctx context.Context, p *api.Pool) (*api.Pool, error)
	Pool(ctx context.Context, name string) (*api.Pool, error)
	Pools(ctx context.Context) ([]api.Pool, error)
	DeletePool(ctx context.Context, name string) error

	CreateVolume(ctx context.Context, v *api.Volume) (*api.Volume, error)
	Volume(ctx context.Context, project, name string) (*api.Volume, error)
	Volumes(ctx context.Context, project string) ([]api.Volume, error)
	PatchVolume(ctx context.Context, project, name string, revision int64, patch []byte) (*api.Volume, error)
	DeleteVolume(ctx context.Context, project, name string) error

	CreateNetwork(ctx context.Context, n *api.Network) (*api.Network, error)
	Network(ctx context.Context, project, name string) (*api.Network, error)
	Networks(ctx context.Context, project string) ([]api.Network, error)
	PatchNetwork(ctx context.Context, project, name string, revision int64, patch []byte) (*api.Network, error)
	DeleteNetwork(ctx context.Context, project, name string) error
}

// OperationBackend follows work in progress and what happens.
type OperationBackend interface {
	Operation(id string) (*api.Operation, error)
	// Operations lists those under way, or all that are kept.
	Operations(project string, all bool) ([]api.Operation, error)
	// WaitOperation returns when the operation has more changes than given,
	// has ended, or ctx is done.
	WaitOperation(ctx context.Context, id string, changes int64) (*api.Operation, error)
	CancelOperation(ctx context.Context, id string) (*api.Operation, error)
	Events(ctx context.Context, since control.Since, yield func(api.Event) error) error
}
