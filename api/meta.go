package api

import "time"

// Meta identifies one resource.
type Meta struct {
	// ID never changes and is never reused: ten characters of base32. Kernel
	// objects (cgroups, links, volumes) are named after it, so that a rename
	// touches nothing but the record.
	ID      string            `json:"id,omitempty" readOnly:"true" doc:"Stable identifier; survives a rename and is never reused"`
	Project string            `json:"project,omitempty" doc:"Project (tenant) the resource lives in; \"default\" if empty"`
	Name    string            `json:"name" doc:"Name, unique in its project: letters, digits and hyphens, at most 63"`
	Labels  map[string]string `json:"labels,omitempty" doc:"Free key/value pairs for selection"`
	// Revision is the etcd mod revision: it grows with every change and is
	// the value of ETag and If-Match.
	Revision int64      `json:"revision,omitempty" readOnly:"true"`
	Created  time.Time  `json:"created,omitzero" readOnly:"true"`
	Deleting *time.Time `json:"deleting,omitempty" readOnly:"true" doc:"Set once deletion has begun; it can't be taken back"`
}

// GetMeta makes every type that embeds Meta an Object.
func (m *Meta) GetMeta() *Meta { return m }

// Object is a resource that the store can keep.
type Object interface{ GetMeta() *Meta }

// List is one page of a listing.
type List[T any] struct {
	Items []T `json:"items"`
	// Next is the cursor of the following page, empty on the last.
	Next string `json:"next,omitempty"`
}
