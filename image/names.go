package image

import (
	"cmp"
	"context"
	"maps"
	"runtime"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/reference"
)

// baseName is the one name that is its own complete form: no registry can
// have it.
const baseName = "base"

// completeName returns the form in which names are kept.
func completeName(name string) (string, error) {
	if name == baseName || name == baseName+":latest" {
		return baseName, nil
	}
	r, err := reference.Parse(name)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

// hostPlatform is that of the programs which this host can execute.
const hostPlatform = "linux/" + runtime.GOARCH

// key is what a name is kept by. There is one for each platform: all that a
// registry has under a name can be here. That of the host's platform is the
// name itself; another has its platform behind a space, which no name has.
func (s *Store) key(name, digest string) string {
	if rec := s.images[digest]; rec != nil && !suits(rec, hostPlatform) {
		return name + " " + rec.Image.Platform
	}
	return name
}

// nameOf is the name in a key.
func nameOf(key string) string {
	name, _, _ := strings.Cut(key, " ")
	return name
}

// suits tells whether an image is for a platform, of any variant. Disks are
// for what can boot them.
func suits(rec *record, platform string) bool {
	have := rec.Image.Platform
	return have == "" || have == platform || strings.HasPrefix(have, platform+"/")
}

// Get finds an image by name, by digest, or by at least six digits of one. Of
// several platforms under one name the host's is the first.
func (s *Store) Get(_ context.Context, ref string) (*api.Image, error) {
	return s.get(ref, "")
}

// Find is Get for a platform, as OS/ARCH; empty is the host's. By name it
// finds no image for another one. A digest says by itself which it is.
func (s *Store) Find(_ context.Context, ref, platform string) (*api.Image, error) {
	return s.get(ref, cmp.Or(platform, hostPlatform))
}

func (s *Store) get(ref, platform string) (*api.Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	digest, err := s.find(ref, platform)
	if err != nil {
		return nil, err
	}
	return s.view(s.images[digest]), nil
}

// named resolves a complete name, for any platform if that is empty; the
// caller holds s.mu. If there are only images of other platforms, it tells one.
func (s *Store) named(name, platform string) (digest, other string) {
	var first string
	for key, d := range s.names {
		if nameOf(key) != name {
			continue
		}
		if rec := s.images[d]; platform != "" && !suits(rec, platform) {
			other = rec.Image.Platform
		} else if first == "" || key < first {
			first, digest = key, d
		}
	}
	return digest, other
}

// find resolves a reference; the caller holds s.mu.
func (s *Store) find(ref, platform string) (digest string, err error) {
	name, nameErr := completeName(ref)
	if nameErr == nil {
		digest, other := s.named(name, platform)
		if digest != "" {
			return digest, nil
		}
		if other != "" {
			return "", api.Errorf(api.CodeNotFound, "image %q is on this host for %s, and not for %s", ref, other, platform).
				WithHint("cleave image pull %s --platform %s", ref, platform)
		}
		if _, d, ok := strings.Cut(name, "@"); ok && s.images[d] != nil {
			return d, nil
		}
	}
	if name == baseName {
		return "", s.noBase()
	}
	if prefix, ok := reference.DigestPrefix(ref); ok {
		var found []string
		for d := range s.images {
			if strings.HasPrefix(strings.TrimPrefix(d, "sha256:"), prefix) {
				found = append(found, d)
			}
		}
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			slices.Sort(found)
			return "", api.Errorf(api.CodeInvalid, "image %s: that begins several digests: %s", ref, strings.Join(found, ", ")).
				WithHint("give more digits")
		}
	} else if nameErr != nil {
		return "", nameErr
	}
	return "", api.Errorf(api.CodeNotFound, "image %q is not on this host", ref).WithHint("cleave image pull %s", ref)
}

func (s *Store) noBase() error {
	switch {
	case s.opts.Busybox == "":
		return api.Errorf(api.CodeNotFound, "image \"base\": this host has no busybox to make it of").
			WithHint("install busybox-static and restart the daemon")
	case s.baseErr != nil:
		return api.Errorf(api.CodeNotFound, "image \"base\" could not be made: %w", s.baseErr).
			WithHint("install busybox-static and restart the daemon")
	}
	return api.Errorf(api.CodeNotFound, "image \"base\" is not on this host").WithHint("restart the daemon to make it")
}

// view is a record as others see it; the caller holds s.mu.
func (s *Store) view(rec *record) *api.Image {
	img := rec.api()
	img.Names = []string{}
	for key, digest := range s.names {
		if digest == img.Digest {
			img.Names = append(img.Names, nameOf(key))
		}
	}
	slices.Sort(img.Names)
	return &img
}

// api is the record without names, as a copy. Records of before there were
// disks don't say their type.
func (rec *record) api() api.Image {
	img := rec.Image
	img.Type = cmp.Or(img.Type, api.ImageRoot)
	img.Config = cloneConfig(img.Config)
	return img
}

func cloneConfig(c api.ImageConfig) api.ImageConfig {
	c.Entrypoint = slices.Clone(c.Entrypoint)
	c.Cmd = slices.Clone(c.Cmd)
	c.Env = slices.Clone(c.Env)
	c.Volumes = slices.Clone(c.Volumes)
	c.ExposedPorts = slices.Clone(c.ExposedPorts)
	c.Labels = maps.Clone(c.Labels)
	if c.Health != nil {
		h := *c.Health
		h.Command = slices.Clone(h.Command)
		c.Health = &h
	}
	return c
}

// List returns all images, sorted by name; those without one come last.
func (s *Store) List(context.Context) ([]api.Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := make(map[string][]string, len(s.images))
	for key, digest := range s.names {
		names[digest] = append(names[digest], nameOf(key))
	}
	list := make([]api.Image, 0, len(s.images))
	for digest, rec := range s.images {
		img := rec.api()
		img.Names = append([]string{}, names[digest]...)
		slices.Sort(img.Names)
		list = append(list, img)
	}
	slices.SortFunc(list, func(a, b api.Image) int {
		if (len(a.Names) == 0) != (len(b.Names) == 0) {
			return len(b.Names) - len(a.Names)
		}
		return cmp.Or(slices.Compare(a.Names, b.Names), cmp.Compare(a.Platform, b.Platform), cmp.Compare(a.Digest, b.Digest))
	})
	return list, nil
}

// Tag gives an image a further name, taking it from any other of its platform.
func (s *Store) Tag(_ context.Context, ref, name string) error {
	complete, err := tagName(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	digest, err := s.find(ref, "")
	if err != nil {
		return err
	}
	return s.setNames(digest, complete)
}

// tagName checks a name that a user wants to give.
func tagName(name string) (string, error) {
	complete, err := completeName(name)
	switch {
	case err != nil:
		return "", err
	case complete == baseName:
		return "", api.Errorf(api.CodeInvalid, "the name \"base\" belongs to the built-in image").WithHint("choose another name")
	case strings.Contains(complete, "@"):
		return "", api.Errorf(api.CodeInvalid, "%q: a name that is given can't have a digest", name).WithHint("write NAME:TAG")
	}
	return complete, nil
}

// setNames points names to an image; the caller holds s.mu.
func (s *Store) setNames(digest string, names ...string) error {
	before := maps.Clone(s.names)
	for _, n := range names {
		s.names[s.key(n, digest)] = digest
	}
	if maps.Equal(before, s.names) {
		return nil
	}
	if err := s.saveNames(); err != nil {
		s.names = before
		return within("save image names", err)
	}
	return nil
}

// Untag takes a name away, or all that an image has if it is given by its
// digest, and keeps the image.
func (s *Store) Untag(_ context.Context, ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	digest, err := s.find(ref, "")
	if err != nil {
		return err
	}
	if key, ok := s.keyOf(ref, digest); ok {
		return s.untag(digest, func(k string) bool { return k == key })
	}
	return s.untag(digest, every)
}

// keyOf is the key by which a reference found an image, if it is a name.
func (s *Store) keyOf(ref, digest string) (string, bool) {
	name, err := completeName(ref)
	if err != nil {
		return "", false
	}
	key := s.key(name, digest)
	return key, s.names[key] == digest
}

func every(string) bool { return true }

// untag takes those names of an image away whose keys are meant; the caller
// holds s.mu.
func (s *Store) untag(digest string, meant func(key string) bool) error {
	before := maps.Clone(s.names)
	maps.DeleteFunc(s.names, func(key, d string) bool { return d == digest && meant(key) })
	switch {
	case s.names[baseName] != before[baseName]:
		s.names = before
		return api.Errorf(api.CodeInvalid, "the built-in image can't be removed")
	case maps.Equal(before, s.names):
		return nil
	}
	if err := s.saveNames(); err != nil {
		s.names = before
		return within("save image names", err)
	}
	return nil
}
