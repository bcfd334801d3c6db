package server

import (
	"context"
	"fmt"
	"io"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
)

func (f *fake) AllKernels(context.Context) ([]api.Kernel, error) {
	return []api.Kernel{{Name: "6.1.0"}, {Name: "6.12.1+deb13"}}, nil
}

func (f *fake) Kernel(_ context.Context, name string) (*api.Kernel, error) {
	if name != "6.12.1+deb13" {
		return nil, api.Errorf(api.CodeNotFound, "kernel %q not found", name)
	}
	return &api.Kernel{Name: name}, nil
}

func (f *fake) AddKernel(_ context.Context, in api.KernelAdd) (*api.Kernel, error) {
	f.call(fmt.Sprintf("add %+v", in))
	return &api.Kernel{Name: "added"}, nil
}

func (f *fake) ImportKernel(_ context.Context, in api.KernelAdd, r io.Reader) (*api.Kernel, error) {
	b, err := io.ReadAll(r)
	f.call(fmt.Sprintf("import %+v %s", in, b))
	return &api.Kernel{Name: "imported"}, err
}

func (f *fake) FetchKernel(_ context.Context, in api.KernelFetch) (*api.Operation, error) {
	f.call(fmt.Sprintf("fetch %+v", in))
	return f.begin("opfetch")
}

func (f *fake) SetDefaultKernel(ctx context.Context, name string) (*api.Kernel, error) {
	f.call("default " + name)
	return f.Kernel(ctx, name)
}

func (f *fake) DeleteKernel(_ context.Context, name string) error {
	f.call("delete " + name)
	return nil
}

func TestClientAndServerAgreeOnKernels(t *testing.T) {
	f := newFake()
	h := start(t, f)
	c, err := client.New(client.Options{Socket: h.socket})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	if all, err := client.Collect(c.Kernels(ctx)); err != nil || len(all) != 2 {
		t.Errorf("Kernels: %v %v", all, err)
	}
	if k, err := c.Kernel(ctx, "6.12.1+deb13"); err != nil || k.Name != "6.12.1+deb13" {
		t.Errorf("Kernel: %v %v", k, err)
	}
	if _, err := c.Kernel(ctx, "none"); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("Kernel: %v", err)
	}
	if k, err := c.AddKernel(ctx, api.KernelAdd{Image: "/boot/vmlinuz", Modules: "/lib/modules/6"}); err != nil || k.Name != "added" {
		t.Errorf("AddKernel: %v %v", k, err)
	}
	if k, err := c.ImportKernel(ctx, api.KernelAdd{Name: "x+y", Kind: api.KindPVM, Default: true}, strings.NewReader("bytes")); err != nil || k.Name != "imported" {
		t.Errorf("ImportKernel: %v %v", k, err)
	}
	if op, err := c.FetchKernel(ctx, api.KernelFetch{Distribution: "debian", Kind: api.KindPVM}); err != nil || op.ID != "opfetch" {
		t.Errorf("FetchKernel: %v %v", op, err)
	}
	if k, err := c.SetDefaultKernel(ctx, "6.12.1+deb13"); err != nil || k.Name != "6.12.1+deb13" {
		t.Errorf("SetDefaultKernel: %v %v", k, err)
	}
	if err := c.DeleteKernel(ctx, "6.12.1+deb13"); err != nil {
		t.Errorf("DeleteKernel: %v", err)
	}
	want := []string{
		"add {Name: Kind: Image:/boot/vmlinuz Modules:/lib/modules/6 Default:false}",
		"import {Name:x+y Kind:pvm Image: Modules: Default:true} bytes",
		"fetch {Distribution:debian Kind:pvm Arch: Default:false}",
		"default 6.12.1+deb13", "delete 6.12.1+deb13",
	}
	if got := f.called(); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("called:\n%s", strings.Join(got, "\n"))
	}
}

// A kernel for virtual machines runs in the guest alone; linux.uml is a
// program for the host.
func TestOnlyRootGivesTheHostAKernelToExecute(t *testing.T) {
	f := newFake()
	h := startWith(t, Options{Backend: f, Group: "daemon", Log: quiet()}, defaultTimeouts)
	g, err := user.LookupGroup("daemon")
	if err != nil {
		t.Skipf("needs a group that isn't root's: %v", err)
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	member := &syscall.Credential{Uid: 65534, Gid: uint32(id)}
	for _, c := range []struct{ path, body, want string }{
		{"/v1/kernels", `{"image":"host"}`, "403 "},
		{"/v1/kernels", `{"image":"/boot/vmlinuz"}`, "403 "},
		{"/v1/kernels/import?kind=pvm", "x", "403 "},
		{"/v1/kernels/import", "x", "201 "},
		{"/v1/kernels/import?kind=vm", "x", "201 "},
	} {
		raw := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: cleave\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", c.path, len(c.body), c.body)
		if got := h.callAs(member, raw); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s %s: %s", c.path, c.body, got)
		}
	}
	for _, call := range f.called() {
		if !strings.Contains(call, "Kind:vm") {
			t.Errorf("a member of the group may import %s", call)
		}
	}
}
