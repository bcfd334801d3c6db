package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func (a *app) screenshotCmd() *cobra.Command {
	var last bool
	cmd := &cobra.Command{
		Use:   "screenshot NAME [FILE]",
		Short: "Save what a machine's screen shows, as PNG",
		Long: `FILE is NAME.png when it is left out, and - for standard output.

With --last it is what the screen showed before the machine was stopped because its firmware found nothing to boot.`,
		Example: `  cleave screenshot desk out.png
  cleave screenshot desk - | display -
  cleave screenshot desk --last`,
		Args:              args(1, 2, "NAME [FILE]"),
		ValidArgsFunction: a.complete(1, instanceNames(api.PhaseRunning, api.PhasePaused)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			look := c.Screenshot
			if last {
				look = c.LastScreen
			}
			png, err := look(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			file := args[0] + ".png"
			if len(args) == 2 {
				file = args[1]
			}
			if file != "-" {
				return os.WriteFile(file, png, 0o644)
			}
			if f, ok := a.out.W.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return usagef("a picture can't be shown on a terminal; name a file")
			}
			_, err = a.out.W.Write(png)
			return err
		},
	}
	cmd.Flags().BoolVar(&last, "last", false, "the picture that was kept when it could not boot")
	return cmd
}

func (a *app) vncCmd() *cobra.Command {
	var (
		socket string
		port   int
		viewer bool
	)
	cmd := &cobra.Command{
		Use:   "vnc NAME",
		Short: "See and use a machine's screen with a VNC viewer",
		Long: `Until it is interrupted, this command answers viewers on a socket that only you can open, and says how to. With --port it answers on loopback, where every user of this host can connect.

With --viewer it starts one that is installed, and ends with it.`,
		Example: `  cleave vnc desk --viewer
  cleave vnc desk --port 5900`,
		Args:              args(1, 1, "NAME"),
		ValidArgsFunction: a.complete(1, instanceNames(api.PhaseRunning, api.PhasePaused)),
	}
	fs := cmd.Flags()
	fs.StringVar(&socket, "listen", "", "socket to answer on (default: a new one)")
	named(fs, "listen", "PATH")
	fs.IntVar(&port, "port", -1, "answer on this port of loopback; 0 for any")
	named(fs, "port", "PORT")
	fs.BoolVar(&viewer, "viewer", false, "start a viewer")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		// What is wrong is told here, and not by a viewer that shows nothing.
		first, err := c.VNC(ctx, args[0])
		if err != nil {
			return err
		}
		first.Close()
		if viewer && port < 0 {
			port = 0 // every viewer knows ports, few know sockets
		}
		l, cleanup, err := listenForViewers(socket, port)
		if err != nil {
			return err
		}
		defer cleanup()
		if viewer {
			return a.runViewer(ctx, c, args[0], l)
		}
		a.note("answering on %s; an interrupt ends it", l.Addr())
		a.note("connect with: %s", viewerHint(l.Addr()))
		return proxyScreens(ctx, c, args[0], l)
	}
	return cmd
}

// listenForViewers makes the socket; cleanup removes it.
func listenForViewers(socket string, port int) (l net.Listener, cleanup func(), err error) {
	if port >= 0 {
		l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return nil, nil, err
		}
		return l, func() { l.Close() }, nil
	}
	dir := ""
	if socket == "" {
		if dir, err = os.MkdirTemp(os.Getenv("XDG_RUNTIME_DIR"), "cleave-vnc-"); err != nil {
			return nil, nil, err
		}
		socket = filepath.Join(dir, "vnc.sock")
	}
	cleanup = func() {
		if l != nil {
			l.Close()
		}
		if dir != "" {
			_ = os.RemoveAll(dir)
		}
	}
	old := syscall.Umask(0o177) // the socket is born with its mode
	l, err = net.Listen("unix", socket)
	syscall.Umask(old)
	if err != nil {
		cleanup()
		return nil, nil, err
	}
	return l, cleanup, nil
}

func viewerHint(a net.Addr) string {
	if a.Network() == "unix" {
		return "vncviewer " + a.String() + "    (TigerVNC; or remmina -c vnc://unix://" + a.String() + ")"
	}
	return "vncviewer " + viewerAddress(a)
}

// viewerAddress is written with two colons: with one, small numbers would be
// displays and not ports.
func viewerAddress(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host + "::" + port
}

// proxyScreens answers viewers until ctx ends.
func proxyScreens(ctx context.Context, c *client.Client, name string, l net.Listener) error {
	var viewers sync.WaitGroup
	defer viewers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		viewers.Go(func() {
			defer conn.Close()
			screen, err := c.VNC(ctx, name)
			if err != nil {
				return
			}
			defer screen.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = io.Copy(screen, conn)
				screen.Close()
			}()
			_, _ = io.Copy(conn, screen)
			conn.Close()
			<-done
		})
	}
}

// viewers are programs that take HOST::PORT.
var viewers = []string{"vncviewer", "xtigervncviewer", "gvncviewer", "xvnc4viewer"}

// runViewer starts a viewer that is installed, and proxies until it ends.
func (a *app) runViewer(ctx context.Context, c *client.Client, name string, l net.Listener) error {
	for _, v := range viewers {
		path, err := exec.LookPath(v)
		if err != nil {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		cmd := exec.CommandContext(ctx, path, viewerAddress(l.Addr()))
		cmd.Stderr = a.err.W
		if err := cmd.Start(); err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() {
			ended <- cmd.Wait()
			cancel()
		}()
		err = proxyScreens(ctx, c, name, l)
		if verr := <-ended; verr != nil {
			return errors.Join(err, fmt.Errorf("%s: %w", v, verr))
		}
		return err
	}
	return api.Errorf(api.CodeUnsupported, "no VNC viewer is installed here").
		WithHint("install tigervnc-viewer, or leave out --viewer and connect one yourself")
}
