package output

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type thing struct {
	Name  string            `json:"name"`
	State string            `json:"state"`
	Size  int64             `json:"size"`
	Note  string            `json:"note,omitempty"`
	Tags  map[string]string `json:"tags,omitempty"`
	List  []string          `json:"list"`
}

var things = []thing{
	{Name: "web", State: "running", Size: 5, Note: "short", List: []string{"true", "1.0", "a: b"}},
	{Name: "数据库", State: "failed", Size: 123456, Note: "a rather long note that a narrow terminal has no room for", Tags: map[string]string{"b": "2", "a": "line one\nline two\n"}},
	{Name: "e\u0301a", State: "stopped", Note: "\x1b[2Jevil\u202etxt"},
}

var listing = Listing[thing]{
	Name: func(t thing) string { return t.Name },
	Columns: []Column[thing]{
		{Head: "NAME", Cell: func(t thing) string { return t.Name }},
		{Head: "STATE", Cell: func(t thing) string { return t.State }, Style: func(t thing) Style {
			if t.State == "running" {
				return Good
			}
			return Plain
		}},
		{Head: "SIZE", Cell: func(t thing) string { return strings.Repeat("#", int(t.Size%7)) }, Raw: func(t thing) string { return "raw" }, Right: true},
		{Head: "NOTE", Cell: func(t thing) string { return t.Note }, Flex: true},
		{Head: "FULL NAME", Cell: func(t thing) string { return t.Name }, Extra: true},
	},
}

func render(t *testing.T, p Printer, f Format, columns string) string {
	t.Helper()
	var b bytes.Buffer
	p.W = &b
	l, err := listing.Select(columns)
	if err != nil {
		t.Fatal(err)
	}
	if err := List(&p, f, l, things); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTableAlignsWideAndCombiningCharacters(t *testing.T) {
	want := `NAME    STATE     SIZE  NOTE
web     running  #####  short
数据库  failed    ####  a rather long note that a narrow terminal has no room for
e` + "\u0301" + `a      stopped      -  \x1b[2Jevil\u202etxt
`
	if diff := cmp.Diff(want, render(t, Printer{}, Table, "")); diff != "" {
		t.Error(diff)
	}
}

func TestTableKeepsToTheTerminal(t *testing.T) {
	want := `NAME    STATE     SIZE  NOTE
web     running  #####  short
数据库  failed    ####  a rather long n…
e` + "\u0301" + `a      stopped      -  \x1b[2Jevil\u20…
`
	if diff := cmp.Diff(want, render(t, Printer{Width: 40}, Table, "")); diff != "" {
		t.Error(diff)
	}
}

func TestColoursLeaveTheAlignment(t *testing.T) {
	got := render(t, Printer{Color: true}, Table, "state,name")
	want := "\x1b[1mSTATE\x1b[0m    \x1b[1mNAME\x1b[0m\n\x1b[32mrunning\x1b[0m  web\nfailed   数据库\nstopped  e\u0301a\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFormatsForPrograms(t *testing.T) {
	for f, want := range map[Format]string{
		Name: "web\n数据库\ne\u0301a\n",
		CSV:  "name,size,full-name\nweb,raw,web\n数据库,raw,数据库\ne\u0301a,raw,e\u0301a\n",
	} {
		if diff := cmp.Diff(want, render(t, Printer{Width: 10}, f, "name,size,full-name")); diff != "" {
			t.Errorf("%s: %s", f, diff)
		}
	}
}

func TestYAMLKeepsOrderAndTypes(t *testing.T) {
	b, err := MarshalYAML(things[:2])
	if err != nil {
		t.Fatal(err)
	}
	want := `- name: web
  state: running
  size: 5
  note: short
  list:
    - "true"
    - "1.0"
    - 'a: b'
- name: 数据库
  state: failed
  size: 123456
  note: a rather long note that a narrow terminal has no room for
  tags:
    a: |
      line one
      line two
    b: "2"
  list: null
`
	if diff := cmp.Diff(want, string(b)); diff != "" {
		t.Error(diff)
	}
}

func TestSelectNamesTheColumns(t *testing.T) {
	_, err := listing.Select("name,colour")
	if err == nil || !strings.Contains(err.Error(), "name, state, size, note, full-name") {
		t.Error(err)
	}
}

func TestShortenNeverSplitsAWideCharacter(t *testing.T) {
	for n, want := range map[int]string{6: "数据库", 5: "数据…", 4: "数… ", 2: "… "} {
		got := Shorten("数据库", n)
		if got != want || Width(got) != n {
			t.Errorf("%d: got %q", n, got)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 3 * time.Hour: "3h", 49 * time.Hour: "2d", 800 * 24 * time.Hour: "2y",
	} {
		if got := Span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestSectionsLeaveOutWhatIsEmpty(t *testing.T) {
	var b bytes.Buffer
	s := NewSections(&Printer{W: &b})
	s.Pair("Name", "web")
	s.Head("Nothing")
	s.Pair("Empty", "")
	s.Head("Network")
	s.Each("Address", []string{"10.0.0.2", "fd00::2"})
	s.Pair("MAC", "aa:bb")
	if err := s.Print(); err != nil {
		t.Fatal(err)
	}
	want := "Name  web\n\nNetwork\n  Address  10.0.0.2\n           fd00::2\n  MAC      aa:bb\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}
