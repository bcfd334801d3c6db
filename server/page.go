package server

import (
	"cmp"
	"encoding/base64"
	"slices"

	"github.com/cleave-project/cleave/api"
)

// Paged are listings.
type Paged struct {
	Limit  int    `query:"limit" minimum:"0" maximum:"10000" doc:"Most items of one page; all if 0"`
	Cursor string `query:"cursor" doc:"Where to go on: next of the page before"`
}

// page is an answer that is one page of a listing.
type page[T any] struct {
	Body api.List[T]
}

// pageOf cuts one page out of all items, in the order of their keys, which
// are unique. A cursor is the key of the last item of the page before, so
// that nothing is skipped or shown twice when items come and go.
func pageOf[T any](items []T, p Paged, key func(*T) string) (*page[T], error) {
	after, err := decodeCursor(p.Cursor)
	if err != nil {
		return nil, err
	}
	items = slices.Clone(items)
	slices.SortFunc(items, func(a, b T) int { return cmp.Compare(key(&a), key(&b)) })
	if p.Cursor != "" {
		from, found := slices.BinarySearchFunc(items, after, func(item T, k string) int { return cmp.Compare(key(&item), k) })
		if found {
			from++
		}
		items = items[from:]
	}
	out := &page[T]{Body: api.List[T]{Items: items}}
	if p.Limit > 0 && len(items) > p.Limit {
		out.Body.Items = items[:p.Limit]
		out.Body.Next = encodeCursor(key(&items[p.Limit-1]))
	}
	if out.Body.Items == nil {
		out.Body.Items = []T{}
	}
	return out, nil
}

func encodeCursor(key string) string { return base64.RawURLEncoding.EncodeToString([]byte(key)) }

func decodeCursor(cursor string) (string, error) {
	key, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		return "", api.Errorf(api.CodeInvalid, "%q is no cursor of this listing", cursor).
			WithField("cursor").WithHint("send the next of the page before as it came")
	}
	return string(key), nil
}

// metaKey orders resources by project and name; neither holds a slash.
func metaKey(m *api.Meta) string { return m.Project + "/" + m.Name }
