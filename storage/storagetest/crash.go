package storagetest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-project/cleave/storage"
)

// These make a test binary the process that is killed, and the one in a
// guest that mounts an overlay.
const (
	childEnv   = "CLEAVE_STORAGETEST_CHILD"
	overlayEnv = "CLEAVE_STORAGETEST_OVERLAY"
)

// Main is TestMain of a package that runs the suite.
func Main(m *testing.M, openPool func(context.Context, storage.Config) (storage.Driver, error)) {
	var err error
	if config := os.Getenv(childEnv); config != "" {
		err = child(config, openPool)
	} else if script := os.Getenv(overlayEnv); script != "" {
		err = overlayChild(script)
	} else {
		os.Exit(m.Run())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// child opens the pool, creates and deletes volumes without end, and says
// on standard output what it begins (+ID, -ID) and that it has ended (ok).
func child(config string, openPool func(context.Context, storage.Config) (storage.Driver, error)) error {
	var c storage.Config
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	ctx := context.Background()
	d, err := openPool(ctx, c)
	if err != nil {
		return err
	}
	fmt.Println("open")
	ids, err := d.List(ctx)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		id := fmt.Sprintf("v%d-%d", os.Getpid(), n)
		fmt.Println("+" + id)
		if err := d.Create(ctx, id, size); err != nil {
			return err
		}
		fmt.Println("ok")
		ids = append(ids, id)
		if len(ids) < 4 {
			continue
		}
		if n%2 == 0 {
			if _, err := d.Path(ctx, ids[0]); err != nil {
				return err
			}
		}
		fmt.Println("-" + ids[0])
		if err := d.Delete(ctx, ids[0]); err != nil {
			return err
		}
		fmt.Println("ok")
		ids = ids[1:]
	}
}

// runAndKill runs the child for a while and returns what it said. after is
// the time between its first byte (or its start, if it isn't to say any)
// and its death.
func runAndKill(t *testing.T, c storage.Config, opened bool, after time.Duration) (said []string) {
	t.Helper()
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+string(config))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	if opened {
		if line, err := r.ReadString('\n'); err != nil {
			cmd.Wait()
			t.Fatalf("child said %q and ended (%v): %s", line, err, stderr.String())
		}
	}
	timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
	defer timer.Stop()
	rest, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.Exited() {
		t.Fatalf("child ended by itself: %v: %s", err, stderr.String())
	}
	return strings.Fields(string(rest))
}

func testKillOpen(t *testing.T, target Target) {
	for range 8 {
		c := place(t, target)
		for range 2 {
			runAndKill(t, c, false, rand.N(60*time.Millisecond))
		}
		d := open(t, target, c)
		writeFile(t, filepath.Join(create(t, d, "vol", size), "file"), "")
		if err := d.Unmount(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func testKillChurn(t *testing.T, target Target) {
	c := place(t, target)
	var sure []string // what must be there
	for range 8 {
		said := runAndKill(t, c, true, rand.N(150*time.Millisecond))
		maybe := ""
		for i, word := range said {
			switch done := i+1 < len(said) && said[i+1] == "ok"; {
			case word == "ok":
			case !done:
				maybe = word[1:]
				sure = slices.DeleteFunc(sure, func(id string) bool { return id == maybe })
			case word[0] == '+':
				sure = append(sure, word[1:])
			default:
				sure = slices.DeleteFunc(sure, func(id string) bool { return id == word[1:] })
			}
		}
		d := open(t, target, c)
		ids, err := d.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range sure {
			if !slices.Contains(ids, id) {
				t.Errorf("volume %s, whose creation was acknowledged, is gone", id)
			}
		}
		for _, id := range ids {
			if !slices.Contains(sure, id) && id != maybe {
				t.Errorf("volume %s, whose deletion was acknowledged, is there", id)
			}
			writeFile(t, filepath.Join(create(t, d, id, size), "file"), "")
		}
		sure = ids
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	d := open(t, target, c)
	for _, id := range sure {
		if err := d.Delete(t.Context(), id); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if err := d.Destroy(t.Context()); err != nil {
		t.Errorf("destroy: %v", err)
	}
	if left, err := os.ReadDir(c.Source); err != nil || len(left) > 0 {
		t.Errorf("left after destroy: %v (%v)", left, err)
	}
}
