package server

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/control"
)

func TestPagesMissNothingWhileItemsComeAndGo(t *testing.T) {
	f := newFake()
	for _, d := range []string{"e", "a", "c", "b", "d"} {
		f.images = append(f.images, api.Image{Digest: d})
	}
	h := start(t, f)
	var got []string
	cursor := ""
	for n := 0; ; n++ {
		_, text := h.do("GET", "/v1/images?limit=2&project=default&cursor="+cursor, "")
		l := decode[api.List[api.Image]](t, text)
		for _, i := range l.Items {
			got = append(got, i.Digest)
		}
		if n == 0 { // "b", where the next page goes on, goes; one comes before and one after
			f.images = slices.DeleteFunc(f.images, func(i api.Image) bool { return i.Digest == "b" })
			f.images = append(f.images, api.Image{Digest: "aa"}, api.Image{Digest: "bb"})
		}
		if cursor = l.Next; cursor == "" {
			break
		}
	}
	if want := []string{"a", "b", "bb", "c", "d", "e"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, text := h.do("GET", "/v1/images?cursor="+encodeCursor("x"), ""); text != "{\"items\":[]}\n" {
		t.Errorf("an empty page is %s", text)
	}
}

func TestInstanceFiltersReachTheBackend(t *testing.T) {
	f := newFake()
	f.add("default", "web", 1)
	f.add("other", "db", 1)
	h := start(t, f)
	_, text := h.do("GET", "/v1/instances?label=a=b&label=c=d=e&phase=running&name=we&limit=5&cursor=x", "")
	want := control.Query{Labels: map[string]string{"a": "b", "c": "d=e"}, Phase: "running", Prefix: "we", Limit: 5, Cursor: "x"}
	if got := fmt.Sprint(f.lastQuery); got != fmt.Sprint(want) {
		t.Errorf("got %s, want %v", got, want)
	}
	if l := decode[api.List[api.Instance]](t, text); len(l.Items) != 1 {
		t.Errorf("got %s", text)
	}
	if _, text := h.do("GET", "/v1/instances?project=*", ""); len(decode[api.List[api.Instance]](t, text).Items) != 2 {
		t.Errorf("all projects: %s", text)
	}
}

func FuzzCursor(f *testing.F) {
	f.Add("YQ")
	f.Add("*")
	f.Fuzz(func(t *testing.T, cursor string) {
		items := []string{"a", "b", "c"}
		p, err := pageOf(items, Paged{Cursor: cursor, Limit: 2}, func(s *string) string { return *s })
		if err == nil && len(p.Body.Items) > 2 {
			t.Errorf("%q: %v", cursor, p.Body.Items)
		}
	})
}
