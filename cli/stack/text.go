package stack

import (
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/cli/settings"
)

// tables are the settings of each kind of resource.
var tables = map[string]settings.Table{"network": settings.Network, "volume": settings.Volume, "instance": settings.Instance}

// text is a document of a kind of resource as a stack file would have it.
func text(kind string, doc map[string]any) string {
	file := map[string]any{}
	for _, s := range tables[kind] {
		v := at(doc, s.Path)
		if m, isMap := v.(map[string]any); v == nil || isMap && len(m) == 0 {
			continue
		}
		file[s.Key] = s.Write(v)
	}
	// A check without a command is the image's, turned off.
	if at(doc, "spec.health") != nil && at(doc, "spec.health.command") == nil {
		file["health.command"] = ""
	}
	b, err := output.MarshalYAML(file)
	if err != nil {
		panic(err) // what came from JSON can be encoded
	}
	return string(b)
}
