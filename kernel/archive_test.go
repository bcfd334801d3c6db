package kernel

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
)

func TestArchiveOfAnOwnSystemHasItsFilesAndTheModules(t *testing.T) {
	s := newStore(t)
	k := add(t, s, kernelDeb(testRelease), api.KernelAdd{})
	var b bytes.Buffer
	if err := s.Archive(&b, k.Name, map[string][]byte{"init": []byte("#!/bin/sh\n"), "usr/bin/sh": []byte("shell")}); err != nil {
		t.Fatal(err)
	}
	files, order := unpack(t, b.Bytes())
	if diff := cmp.Diff("#!/bin/sh\n", string(files["init"].content)); diff != "" {
		t.Error(diff)
	}
	if f := files["usr/bin/sh"]; f.mode != "100755" || !slices.IsSorted([]int{slices.Index(order, "usr"), slices.Index(order, "usr/bin"), slices.Index(order, "usr/bin/sh")}) {
		t.Errorf("usr/bin/sh is %+v, and stands in %q", f, order)
	}
	for name := range bytes.FieldsSeq(files["modules/order"].content) {
		if len(files["modules/"+string(name)].content) == 0 {
			t.Errorf("module %s is missing", name)
		}
	}
	if len(files["modules/order"].content) == 0 {
		t.Error("no modules")
	}
	boot, err := s.Files(k.Name)
	if err != nil || boot.Version != k.Version || boot.Initrd != "" {
		t.Errorf("its files are %+v, %v", boot, err)
	}
	if err := s.Archive(&b, k.Name, nil, "no-such-module"); err == nil || !strings.Contains(err.Error(), "no_such_module") {
		t.Errorf("an archive with a module that there isn't: %v", err)
	}
	if err := s.Archive(&b, "none", nil); api.AsError(err).Code != api.CodeNotFound {
		t.Errorf("an archive for a kernel that isn't there: %v", err)
	}
}

func TestArchiveWithoutAKernelHasNoModules(t *testing.T) {
	var b bytes.Buffer
	if err := Archive(&b, map[string][]byte{"init": []byte("x")}); err != nil {
		t.Fatal(err)
	}
	files, _ := unpack(t, b.Bytes())
	if len(files["modules/order"].content) != 0 || string(files["init"].content) != "x" {
		t.Errorf("it holds %v", files)
	}
}
