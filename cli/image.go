package cli

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/client"
	"github.com/cleave-project/cleave/image/credentials"
	"github.com/cleave-project/cleave/image/reference"
	"github.com/spf13/cobra"
)

func (a *app) imageCmd() *cobra.Command {
	list := listVerb(a, "List images on this host", a.imageListing(), func(ctx context.Context, c *client.Client) iter.Seq2[api.Image, error] { return c.Images(ctx) })
	show := showVerb(a, "Show one image", "IMAGE", imageNames, func(ctx context.Context, c *client.Client, ref string) (*api.Image, error) { return c.Image(ctx, ref) }, a.describeImage)
	var force bool
	del := deleteVerb(a, "Delete images", imageNames, func(ctx context.Context, c *client.Client, ref string) error { return c.DeleteImage(ctx, ref, force) })
	del.Use, del.Args = "delete IMAGE...", args(1, -1, "IMAGE...")
	del.Flags().BoolVar(&force, "force", false, "also when instances were made from it; they keep what they need")
	return noun("image", "Images: what instances are made from", list, show, a.imagePullCmd(), a.imageImportCmd(), a.imageExportCmd(), a.imageBuildCmd(), del, a.imagePruneCmd())
}

func (a *app) imageListing() output.Listing[api.Image] {
	return output.Listing[api.Image]{
		Name: func(i api.Image) string {
			if len(i.Names) == 0 {
				return i.Digest
			}
			return familiar(i.Names[0])
		},
		Columns: []output.Column[api.Image]{
			{Head: "NAME", Flex: true, Cell: func(i api.Image) string {
				names := make([]string, len(i.Names))
				for n, ref := range i.Names {
					names[n] = familiar(ref)
				}
				return strings.Join(names, " ")
			}},
			{Head: "DIGEST", Cell: func(i api.Image) string { return shortDigest(i.Digest) }, Raw: func(i api.Image) string { return i.Digest }},
			{Head: "TYPE", Cell: func(i api.Image) string { return i.Type }},
			{Head: "PLATFORM", Cell: func(i api.Image) string { return i.Platform }},
			{Head: "KIND", Extra: true, Cell: func(i api.Image) string { return map[bool]string{true: "system", false: "application"}[i.System] }},
			amount("SIZE", func(i api.Image) api.Bytes { return i.Size }),
			{Head: "USED", Right: true, Cell: func(i api.Image) string { return fmt.Sprint(len(i.UsedBy)) }},
			{Head: "AGE", Right: true, Cell: func(i api.Image) string { return a.age(i.Created) }, Raw: func(i api.Image) string { return stamp(i.Created) }},
			{Head: "SOURCE", Extra: true, Flex: true, Cell: func(i api.Image) string { return i.Source }},
		},
	}
}

func (a *app) describeImage(s *output.Sections, i *api.Image) {
	c := &i.Config
	s.Each("Names", i.Names)
	s.Pair("Digest", i.Digest)
	s.Pair("Type", map[string]string{"root": "root file system", "disk": "disk of a system of its own", "iso": "medium"}[i.Type])
	s.Pair("Platform", i.Platform)
	isDisk := i.Type == "disk" || i.Type == "iso"
	if !isDisk {
		s.Pair("Kind", map[bool]string{true: "system: its entry point is an init", false: "application"}[i.System])
	}
	s.Pair("Size", i.Size.String())
	if isDisk {
		s.Pair("Seen by the guest", i.DiskSize.String())
		s.Pair("Boots by", i.Firmware)
	}
	s.Pair("Source", i.Source)
	s.Pair("On this host since", a.ago(&i.Created))
	s.Each("Used by", i.UsedBy)
	if isDisk {
		return
	}
	s.Head("Configuration")
	s.Pair("Entry point", quoted(c.Entrypoint))
	s.Pair("Command", quoted(c.Cmd))
	s.Each("Environment", c.Env)
	s.Pair("User", c.User)
	s.Pair("Directory", c.WorkDir)
	s.Pair("Stop signal", c.StopSignal)
	s.Each("Volumes", c.Volumes)
	s.Pair("Ports", strings.Join(c.ExposedPorts, " "))
	if c.Health != nil {
		s.Pair("Health check", quoted(c.Health.Command))
	}
	s.Each("Labels", pairs(c.Labels))
}

func (a *app) imagePullCmd() *cobra.Command {
	var (
		pull     api.ImagePull
		user     string
		password bool
	)
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Fetch an image from a registry",
		Long:  "IMAGE is written as Docker users write it: debian, debian:bookworm, ghcr.io/org/app:1, name@sha256:.... Without --password-stdin, credentials come from the Docker configuration of who calls (~/.docker, $DOCKER_CONFIG), and if it has none for this registry, from the daemon's.",
		Example: `  cleave image pull debian:bookworm
  cleave image pull --user me --password-stdin registry.example.org/app <secret`,
		Args:              args(1, 1, "IMAGE"),
		ValidArgsFunction: a.complete(1, imageNames),
	}
	fs := cmd.Flags()
	fs.StringVar(&pull.Platform, "platform", "", "another platform than the host's, as OS/ARCH[/VARIANT]")
	fs.BoolVar(&pull.PlainHTTP, "plain-http", false, "allow a registry without TLS (always allowed on loopback)")
	fs.StringVar(&user, "user", "", "user name at the registry")
	fs.BoolVar(&password, "password-stdin", false, "read the password, or without --user a bearer token, from standard input")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		pull.Reference = args[0]
		if user != "" && !password {
			return usagef("--user needs --password-stdin, so that the password is in no list of processes")
		}
		var err error
		if password {
			pull.Auth, err = a.passwordAuth(user)
		} else {
			pull.Auth = a.dockerAuth(cmd.Context(), pull.Reference)
		}
		if err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		op, err := a.one(cmd.Context(), func(ctx context.Context) (*api.Operation, error) { return c.PullImage(ctx, pull) })
		return a.printResult(op, err)
	}
	return cmd
}

// passwordAuth reads a password, or without a user a token.
func (a *app) passwordAuth(user string) (*api.RegistryAuth, error) {
	secret, err := io.ReadAll(io.LimitReader(a.in, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("reading the password from standard input: %w", err)
	}
	word := strings.TrimRight(string(secret), "\r\n")
	if user == "" {
		return &api.RegistryAuth{Token: word}, nil
	}
	return &api.RegistryAuth{Username: user, Password: word}, nil
}

// dockerAuth is what the caller's own Docker configuration has for an image's
// registry. Most images are public: one that is broken is told, and the
// registry decides. A bad reference is for the daemon to explain.
func (a *app) dockerAuth(ctx context.Context, ref string) *api.RegistryAuth {
	r, err := reference.Parse(ref)
	if err != nil {
		return nil
	}
	auth, err := credentials.Find(ctx, "", r.Registry)
	if err != nil {
		a.note("%v", err)
	}
	return auth
}

// printResult prints what an operation made.
func (a *app) printResult(op *api.Operation, err error) error {
	if err == nil {
		_, err = fmt.Fprintln(a.out.W, op.Result)
	}
	return err
}
