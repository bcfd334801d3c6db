package manifest

import (
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cleave-project/cleave/api"
)

// ParsePlatform reads os/arch[/variant]; empty is the host's.
func ParsePlatform(s string) (v1.Platform, error) {
	if s == "" {
		return v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, nil
	}
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return v1.Platform{}, api.Errorf(api.CodeInvalid, "%.60q is no platform", s).
			WithField("platform").WithHint("write os/architecture[/variant], like linux/amd64 or linux/arm/v7")
	}
	p := v1.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return normalize(p), nil
}

// normalize brings the names that people and old tools write to Go's.
func normalize(p v1.Platform) v1.Platform {
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "i386", "i686":
		p.Architecture = "386"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	// image-index.md: v8 is arm64's only variant, and the base one of amd64
	// is v1.
	if p.Architecture == "arm64" && p.Variant == "v8" || p.Architecture == "amd64" && p.Variant == "v1" {
		p.Variant = ""
	}
	return p
}

// Choose returns the entry of an index for a platform: the exact variant, or
// without a wanted one the entry without variant, else the highest.
func Choose(entries []v1.Descriptor, want v1.Platform) (v1.Descriptor, error) {
	var best *v1.Descriptor
	var have []string
	for n := range entries {
		e := &entries[n]
		p := e.Platform
		if p == nil {
			// An index of one manifest may leave it out; the configuration
			// tells.
			if len(entries) == 1 {
				return *e, nil
			}
			continue
		}
		if p.OS == "unknown" || p.Architecture == "unknown" || p.OS == "" {
			continue // attestations
		}
		got := normalize(*p)
		have = append(have, v1.Platform{OS: got.OS, Architecture: got.Architecture, Variant: got.Variant}.String())
		if got.OS != want.OS || got.Architecture != want.Architecture || want.Variant != "" && got.Variant != want.Variant {
			continue
		}
		if best == nil || best.Platform.Variant != "" && (got.Variant == "" || normalize(*best.Platform).Variant < got.Variant) {
			best = e
		}
	}
	if best != nil {
		return *best, nil
	}
	slices.Sort(have)
	return v1.Descriptor{}, noPlatform(want, slices.Compact(have))
}

// checkPlatform holds an image against the wanted platform. A configuration
// that names none is believed.
func (i *Image) checkPlatform(want v1.Platform) error {
	got := normalize(v1.Platform{OS: i.Config.OS, Architecture: i.Config.Architecture, Variant: i.Config.Variant})
	if got.OS == "" && got.Architecture == "" {
		i.Platform = want.String()
		return nil
	}
	i.Platform = got.String()
	if got.OS != want.OS || got.Architecture != want.Architecture || want.Variant != "" && got.Variant != "" && got.Variant != want.Variant {
		return noPlatform(want, []string{got.String()})
	}
	return nil
}

func noPlatform(want v1.Platform, have []string) error {
	if len(have) == 0 {
		return api.Errorf(api.CodeNotFound, "it has no image for any platform")
	}
	return api.Errorf(api.CodeNotFound, "it has no image for %s; there is %s", want.String(), strings.Join(have, ", ")).
		WithField("platform").WithHint("choose one with --platform")
}
