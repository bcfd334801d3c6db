// Package daemon puts the parts of cleaved together and runs them: the
// state, the keeper, images, network and engines under a controller, and the
// API on its sockets. Several daemons may run on one host, each with its own
// data and run directory; a lock in the data directory keeps two from
// sharing one.
//
// Ending a daemon, in whatever way, stops no guest. SIGTERM and SIGINT end it
// in order; SIGPWR stops all guests first and takes down what they used, as
// a host that shuts down wants it.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/control"
	"github.com/cleave-project/cleave/image"
	"github.com/cleave-project/cleave/keeper"
	"github.com/cleave-project/cleave/kernel"
	"github.com/cleave-project/cleave/network"
	"github.com/cleave-project/cleave/server"
	"github.com/cleave-project/cleave/storage/btrfs"
	"github.com/cleave-project/cleave/storage/dir"
	"github.com/cleave-project/cleave/store"
)

// Daemon is a running cleaved.
type Daemon struct {
	cfg     Config
	version string
	log     *slog.Logger

	lock    *os.File
	store   *store.Store
	keeper  *keeper.Client
	images  *image.Store
	kernels *kernel.Store
	network *network.Manager
	engines *engines
	control *control.Controller
}

// Run runs a daemon until a signal or ctx ends it.
func Run(ctx context.Context, cfg Config, version string) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		return api.Errorf(api.CodeInvalid, "log level %q: use debug, info, warn or error", cfg.LogLevel)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if os.Geteuid() != 0 {
		return api.Errorf(api.CodeForbidden, "cleaved must run as root").WithHint("start it with systemctl start cleaved, or sudo")
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGPWR)
	defer signal.Stop(signals)

	if os.Getenv(readyEnv) != "" {
		unix.CloseOnExec(3) // the keeper must not hold it
	}
	d := &Daemon{cfg: cfg, version: version, log: log}
	defer d.close()
	if err := d.open(ctx); err != nil {
		return err
	}
	sctx, stop := context.WithCancel(ctx)
	defer stop()
	served, err := d.serve(sctx)
	if err != nil {
		return err
	}
	go d.watchKeeper(sctx)
	_, _ = systemd.SdNotify(false, systemd.SdNotifyReady)
	tellReady()
	log.Info("cleaved is ready", "version", version, "socket", d.socket(), "instances", d.control.Info().Instances)
	select {
	case s := <-signals:
		_, _ = systemd.SdNotify(false, systemd.SdNotifyStopping)
		log.Info("ending", "signal", s.String())
		stop()
		err := <-served
		if s == unix.SIGPWR {
			err = errors.Join(err, d.takeDown(context.WithoutCancel(ctx)))
		}
		return err
	case err := <-served:
		return err
	case <-d.store.Stopped():
		return errors.New("the state store has ended by itself")
	case <-ctx.Done():
		stop()
		return <-served
	}
}

// drivers are the ways to keep volumes, by the name in a pool's spec.
var drivers = map[string]control.StorageDriver{
	"btrfs": {Open: btrfs.Open, Probe: btrfs.Probe},
	"dir":   {Open: dir.Open, Probe: dir.Probe},
}

// open brings the parts up in the order in which they need each other.
func (d *Daemon) open(ctx context.Context) error {
	cfg := d.cfg
	for _, path := range []string{cfg.Data, filepath.Join(cfg.Run, "instances"), filepath.Join(cfg.Run, "pvm"), filepath.Join(cfg.Run, "vm"), filepath.Join(cfg.Data, "logs")} {
		if err := os.MkdirAll(path, 0o711); err != nil {
			return fmt.Errorf("directory for the daemon: %w", err)
		}
	}
	var err error
	if d.lock, err = lockDir(cfg.Data); err != nil {
		return err
	}
	keeperBin, err := cfg.libexec("cleave-keeper")
	if err != nil {
		return err
	}
	agentBin, err := cfg.libexec("cleave-agent")
	if err != nil {
		return err
	}
	busybox, err := cfg.libexec("busybox")
	if err != nil {
		d.log.Warn("there will be no built-in image base", "reason", err)
	}
	if d.store, err = store.Open(ctx, store.Options{Dir: filepath.Join(cfg.Data, "state"), Log: d.log}); err != nil {
		return err
	}
	if d.keeper, _, err = keeper.Ensure(ctx, d.keeperSocket(), keeperBin, d.log); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	if d.images, err = image.Open(image.Options{Dir: filepath.Join(cfg.Data, "images"), Busybox: busybox, Log: d.log}); err != nil {
		return err
	}
	d.network, err = network.Open(ctx, network.Options{Scope: cfg.scope(), Dir: filepath.Join(cfg.Data, "network"), Run: filepath.Join(cfg.Run, "network"), Log: d.log})
	if err != nil {
		return err
	}
	if d.engines, err = openEngines(ctx, cfg, d.keeper, agentBin, d.log); err != nil {
		return err
	}
	d.kernels, err = kernel.Open(kernel.Options{Dir: filepath.Join(cfg.Data, "kernels"), Agent: cfg.agentFor, Log: d.log})
	if err != nil {
		return err
	}
	d.control, err = control.New(ctx, control.Options{
		Data: cfg.Data, Run: cfg.Run, Scope: cfg.scope(), Version: d.version, UIDBase: cfg.UIDBase, AgentFor: cfg.agentFor,
		Store: d.store, Images: d.images, Kernels: d.kernels, Network: d.network, Drivers: drivers, ForgetImage: d.engines.container.ForgetImage, Engines: d.engines.all(), Log: d.log,
	})
	if err != nil {
		return err
	}
	return d.control.Start(ctx)
}

func (d *Daemon) keeperSocket() string { return filepath.Join(d.cfg.Run, "keeper.sock") }
func (d *Daemon) socket() string       { return filepath.Join(d.cfg.Run, "cleave.sock") }

// close ends what open began, as far as it came.
func (d *Daemon) close() {
	if d.control != nil {
		d.control.Close()
	}
	if d.engines != nil {
		if err := d.engines.close(); err != nil {
			d.log.Error("closing the engines", "error", err)
		}
	}
	if d.network != nil {
		d.network.Close()
	}
	if d.images != nil {
		d.images.Close()
	}
	if d.store != nil {
		if err := d.store.Close(); err != nil {
			d.log.Error("closing the state", "error", err)
		}
	}
	if d.lock != nil {
		d.lock.Close()
	}
}

// lockDir makes sure that one daemon uses a data directory. The lock goes
// with the process, so a stale file means nothing.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(path)
		f.Close()
		return nil, api.Errorf(api.CodeInUse, "another cleaved (pid %s) uses %s", strings.TrimSpace(string(pid)), dir).WithHint("stop that one, or give --data and --run of its own to this one")
	}
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return f, nil
}

// serve opens the sockets. The channel tells when serving has ended.
func (d *Daemon) serve(ctx context.Context) (<-chan error, error) {
	srv := server.New(server.Options{Backend: d.control, Version: d.version, Group: d.cfg.Group, Health: d.health, Log: d.log})
	local, err := server.ListenUnix(d.socket(), d.cfg.Group)
	if err != nil {
		return nil, err
	}
	listeners := map[net.Listener]server.Access{local: {Peer: true}}
	if d.cfg.Listen != "" {
		l, err := server.ListenTCP(d.cfg.Listen, d.cfg.TLSCert, d.cfg.TLSKey)
		if err != nil {
			local.Close()
			return nil, err
		}
		listeners[l] = server.Access{}
	}
	done := make(chan error, 1)
	ends := make(chan error, len(listeners))
	for l, access := range listeners {
		go func() { ends <- srv.Serve(ctx, l, access) }()
	}
	go func() {
		var errs []error
		for range listeners {
			errs = append(errs, <-ends)
		}
		done <- errors.Join(errs...)
	}()
	return done, nil
}

// health tells how the parts are, by name.
func (d *Daemon) health(ctx context.Context) map[string]error {
	_, keeperErr := d.keeper.List(ctx)
	return map[string]error{"state": d.store.Healthy(ctx), "keeper": keeperErr}
}

// watchKeeper replaces a keeper that died. Its guests live on; those that
// the kernel lets a new keeper take over are adopted.
func (d *Daemon) watchKeeper(ctx context.Context) {
	for ctx.Err() == nil {
		// The stream of exits ends with the keeper; the engine has its own.
		exits, err := d.keeper.Exits(ctx)
		for err == nil {
			if _, ok := <-exits; !ok {
				break
			}
		}
		if ctx.Err() != nil {
			return
		}
		d.log.Error("the keeper has died; starting another")
		if err := d.replaceKeeper(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("the keeper could not be replaced", "error", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
}

func (d *Daemon) replaceKeeper(ctx context.Context) error {
	bin, err := d.cfg.libexec("cleave-keeper")
	if err != nil {
		return err
	}
	k, _, err := keeper.Ensure(ctx, d.keeperSocket(), bin, d.log)
	if err != nil {
		return err
	}
	d.keeper = k
	return d.engines.setKeeper(ctx, k, d.control.Resync)
}

// takeDown stops all guests and removes what they used on the host: links,
// rules, cgroups, mounts and the keeper. Data stays.
func (d *Daemon) takeDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	d.control.StopAll(ctx, 20*time.Second)
	err := d.control.TakeDown(ctx)
	err = errors.Join(err, d.network.Destroy(ctx))
	d.engines.destroy()
	return errors.Join(err, d.keeper.Stop(ctx))
}
