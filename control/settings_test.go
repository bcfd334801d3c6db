package control

import (
	"encoding/json"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
)

// Every setting means something behind a wall, or is refused with the way out:
// none is taken and forgotten. A new field of the spec belongs into this
// table.
func TestEverySettingIsMeantOrRefused(t *testing.T) {
	const (
		container = "container"
		pvm       = "pvm"
		vm        = "vm"
		own       = "own" // a system of its own, of kind vm
		images    = "container pvm vm"
		machines  = "pvm vm own"
		all       = "container pvm vm own"
	)
	otherArch := map[bool]string{true: "arm64", false: "amd64"}[runtime.GOARCH == "amd64"]
	settings := map[string]struct{ value, has string }{
		"entrypoint":                 {`["/bin/x"]`, images},
		"command":                    {`["x"]`, images},
		"env":                        {`{"A":"1"}`, images},
		"user":                       {`"1"`, images},
		"workDir":                    {`"/tmp"`, images},
		"hostname":                   {`"other"`, all},
		"stopSignal":                 {`"SIGINT"`, images},
		"stopSeconds":                {`5`, all},
		"tty":                        {`true`, all}, // a system of its own has a terminal anyway
		"stdin":                      {`true`, images},
		"init":                       {`true`, images},
		"restart":                    {`"always"`, all},
		"autostart":                  {`true`, all},
		"ephemeral":                  {`true`, all},
		"resources.cpus":             {`1`, all},
		"resources.cpuWeight":        {`50`, all},
		"resources.cpuSet":           {`"0"`, all},
		"resources.memory":           {`"256MiB"`, all},
		"resources.memorySoft":       {`"64MiB"`, all},
		"resources.swap":             {`"1MiB"`, all}, // with memory
		"resources.pids":             {`99`, images},
		"resources.diskRead":         {`"1MiB"`, all},
		"resources.diskWrite":        {`"1MiB"`, "container vm own"},
		"resources.diskReadOps":      {`99`, all},
		"resources.diskWriteOps":     {`99`, "container vm own"},
		"resources.netIn":            {`"1MiB"`, all},
		"resources.netOut":           {`"1MiB"`, all},
		"root.pool":                  {`"default"`, all},
		"root.size":                  {`"1GiB"`, all},
		"mounts":                     {`[{"hostPath":"/tmp","target":"/t"}]`, container},
		"nics":                       {`[]`, all},
		"publish":                    {`[{"hostPort":8080,"guestPort":80}]`, all},
		"health":                     {`{"command":["true"]}`, all},
		"sysctls":                    {`{"net.ipv4.ip_forward":"1"}`, images},
		"ulimits":                    {`{"nofile":{"soft":1,"hard":2}}`, images},
		"shmSize":                    {`"1MiB"`, images},
		"security.addCapabilities":   {`["NET_RAW"]`, container},
		"security.dropCapabilities":  {`["NET_RAW"]`, images},
		"security.noNewPrivileges":   {`true`, images},
		"security.readOnlyRoot":      {`true`, images},
		"machine.arch":               {`"` + runtime.GOARCH + `"`, machines},
		"machine.arch, another":      {`"` + otherArch + `"`, ""},
		"machine.kernel":             {`"other"`, "pvm vm"},
		"machine.firmware":           {`"uefi"`, own},
		"machine.secureBoot":         {`true`, own},
		"machine.tpm":                {`true`, own},
		"machine.iso":                {`"` + mediumFile(t) + `"`, own},
		"machine.bootOrder":          {`["network"]`, own},
		"machine.bootSeconds":        {`60`, own},
		"machine.accel":              {`"tcg"`, "vm own"},
		"machine.engine":             {`"qemu"`, "vm own"},
		"machine.cloudInit":          {`{"noAgent":true}`, own},
		"resources.cpus, several":    {`2`, "container vm own"},
		"security.addCapabilities *": {`["NET_RAW"]`, images}, // with all dropped
	}
	apart := map[string]bool{"kind": true, "image": true, "power": true}
	for _, path := range leaves("", reflect.TypeFor[api.InstanceSpec]()) {
		if _, ok := settings[path]; !ok && !apart[path] {
			t.Errorf("%s is not in the table: which walls have it?", path)
		}
	}
	w := newWorld(t, newVM(), newPVM())
	for path, s := range settings {
		for kind := range strings.FieldsSeq(all) {
			in := settingOf(t, kind, path, s.value)
			_, err := w.c.CreateInstance(t.Context(), in, false)
			has := strings.Contains(" "+s.has+" ", " "+kind+" ")
			if runtime.NumCPU() < 2 && api.IsCode(err, api.CodeNoResources) {
				continue
			}
			if has != (err == nil) {
				t.Errorf("%s of %s: %v", path, kind, err)
			}
			if e := api.AsError(err); e != nil && (e.Code != api.CodeUnsupported && e.Code != api.CodeInvalid || e.Field == "" || e.Hint == "") {
				t.Errorf("%s of %s: %s %q, hint %q", path, kind, e.Code, e.Message, e.Hint)
			}
		}
	}
}

// leaves are the paths of a spec's settings.
func leaves(path string, typ reflect.Type) []string {
	if typ.Kind() != reflect.Struct {
		return []string{path}
	}
	var list []string
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		list = append(list, leaves(strings.TrimPrefix(path+"."+name, "."), typ.Field(i).Type)...)
	}
	return list
}

// settingOf is an instance with one setting, and what that needs.
func settingOf(t *testing.T, kind, path, value string) *api.Instance {
	t.Helper()
	in := &api.Instance{Meta: api.Meta{Name: "s" + strings.NewReplacer(".", "-", " ", "-", ",", "", "*", "x").Replace(strings.ToLower(kind+path))}}
	in.Spec = api.InstanceSpec{Kind: api.Kind(kind), Image: "tiny"}
	if kind == "own" {
		in.Spec.Kind, in.Spec.Image = api.KindVM, ""
	}
	switch path {
	case "resources.swap":
		in.Spec.Resources.Memory = 256 * api.MiB
	case "machine.secureBoot":
		if kind == "own" {
			in.Spec.Machine.Firmware = "uefi"
		}
	case "security.addCapabilities *":
		in.Spec.Security.DropCapabilities = []string{"ALL"}
	}
	path, _, _ = strings.Cut(path, ",")
	path = strings.TrimSuffix(path, " *")
	text := value
	names := strings.Split(path, ".")
	for i := len(names) - 1; i >= 0; i-- {
		text = `{"` + names[i] + `":` + text + `}`
	}
	if err := json.Unmarshal([]byte(text), &in.Spec); err != nil {
		t.Fatal(err)
	}
	return in
}
