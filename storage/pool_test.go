package storage

import (
	"strings"
	"sync"
	"testing"

	"github.com/cleave-project/cleave/api"
)

func TestCheckID(t *testing.T) {
	for id, valid := range map[string]bool{
		"a": true, "0": true, "a-b": true, "abcdefghij234567": true, strings.Repeat("a", 128): true,
		"": false, "-a": false, ".": false, "..": false, ".a": false, "a/b": false, "A": false,
		"a_b": false, "a.b": false, "a\x00": false, "a\n": false, strings.Repeat("a", 129): false,
	} {
		if err := CheckID(id); (err == nil) != valid {
			t.Errorf("%q: got %v, want valid %v", id, err, valid)
		} else if err != nil && !api.IsCode(err, api.CodeInvalid) {
			t.Errorf("%q: got %v, want an error of code invalid", id, err)
		}
	}
}

func TestLockHasOneHolder(t *testing.T) {
	dir := t.TempDir()
	first, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); !api.IsCode(err, api.CodeBusy) {
		t.Errorf("second lock: got %v, want an error of code busy", err)
	}
	first.Close()
	second, err := Lock(dir)
	if err != nil {
		t.Fatalf("lock after the first is gone: %v", err)
	}
	second.Close()
}

func TestLocksSerializeByID(t *testing.T) {
	var l idLocks
	defer l.Lock("other")() // must not be waited for
	const workers, rounds = 8, 1000
	count := 0 // the race detector watches it as well
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range rounds {
				unlock := l.Lock("id")
				count++
				unlock()
			}
		})
	}
	wg.Wait()
	if count != workers*rounds {
		t.Errorf("counted %d, want %d", count, workers*rounds)
	}
	if len(l.held) != 1 {
		t.Errorf("%d ids are remembered, want that which is held", len(l.held))
	}
}
