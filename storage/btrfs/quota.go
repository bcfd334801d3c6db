package btrfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// A volume's limit is on a qgroup of a level of our own, LEVEL/SUBVOLUME,
// that has the volume's subvolume as member. With simple quotas the kernel
// puts subvolumes that are made inside a volume into the same group, which a
// limit on the subvolume's own group 0/SUBVOLUME would not cover: a guest
// may make subvolumes wherever it may make directories.
const (
	qgroupLevel      = 0x434c // "CL"; users' own groups are on low levels
	qgroupLevelShift = 48
)

func volumeQgroup(subvolume uint64) uint64 { return qgroupLevel<<qgroupLevelShift | subvolume }

// quota is the accounting of one file system. The kernel shows it in sysfs
// as it is in memory, which is fresher than the quota tree: that is written
// at commits, up to 30 seconds apart.
type quota struct {
	sysfs string // /sys/fs/btrfs/UUID/qgroups
	mode  string // squota or qgroup
}

// openQuota finds out how the file system at dir accounts, and turns
// accounting on if it doesn't. Simple quotas are for file systems of our own
// only: they set an incompatible feature bit, so a file system that others
// made might no longer mount under a kernel older than 6.7.
func openQuota(dir *os.File, ours bool) (*quota, error) {
	uuid, err := fsUUID(dir)
	if err != nil {
		return nil, err
	}
	q := &quota{sysfs: filepath.Join("/sys/fs/btrfs", uuid, "qgroups")}
	if _, err := os.Stat(q.sysfs); errors.Is(err, os.ErrNotExist) {
		cmds := []uint64{quotaEnableFull}
		if ours {
			cmds = []uint64{quotaEnableSimple, quotaEnableFull}
		}
		for _, cmd := range cmds {
			if err = enableQuota(dir, cmd); !errors.Is(err, unix.EINVAL) { // unknown command
				break
			}
		}
		if err != nil {
			return nil, err
		}
	}
	q.mode = "qgroup"
	if mode, err := os.ReadFile(filepath.Join(q.sysfs, "mode")); err == nil && strings.TrimSpace(string(mode)) == "squota" {
		q.mode = "squota"
	}
	return q, nil
}

// attach makes the group of a new, empty subvolume and limits it.
func (q *quota) attach(dir *os.File, subvolume uint64, size api.Bytes) error {
	group := volumeQgroup(subvolume)
	if err := createQgroup(dir, group); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := assignQgroup(dir, subvolume, group); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return q.limit(dir, subvolume, size)
}

func (q *quota) limit(dir *os.File, subvolume uint64, size api.Bytes) error {
	max := noLimit
	if size > 0 {
		max = uint64(size)
	}
	return limitQgroup(dir, volumeQgroup(subvolume), max)
}

// usage reads what the volume refers to, with what is written but not yet
// allocated, and its limit.
func (q *quota) usage(subvolume uint64) (used, size api.Bytes, err error) {
	values := map[string]uint64{"referenced": 0, "rsv_data": 0, "max_referenced": 0, "limit_flags": 0}
	for name := range values {
		if values[name], err = q.read(qgroupLevel, subvolume, name); err != nil {
			return 0, 0, fmt.Errorf("read use of subvolume %d: %w", subvolume, err)
		}
	}
	if values["limit_flags"]&qgroupLimitMaxReferenced != 0 && values["max_referenced"] != noLimit {
		size = api.Bytes(values["max_referenced"])
	}
	return api.Bytes(values["referenced"] + values["rsv_data"]), size, nil
}

// left lists the subvolume ids that our groups are for.
func (q *quota) left() ([]uint64, error) {
	entries, err := os.ReadDir(q.sysfs)
	if err != nil {
		return nil, err
	}
	var ids []uint64
	for _, e := range entries {
		level, id, _ := strings.Cut(e.Name(), "_")
		if level != strconv.Itoa(qgroupLevel) {
			continue
		}
		if n, err := strconv.ParseUint(id, 10, 64); err == nil {
			ids = append(ids, n)
		}
	}
	return ids, nil
}

// remove takes away the groups of a destroyed subvolume. It reports false
// while they still account for something: the kernel has yet to free what
// the subvolume held, or other volumes share it. Removed too early, full
// quotas would be marked inconsistent.
func (q *quota) remove(dir *os.File, subvolume uint64) bool {
	if alive, err := subvolumeExists(dir, subvolume); err != nil || alive {
		return false
	}
	// The kernel removes 0/SUBVOLUME itself since 6.11.
	for _, level := range []uint64{0, qgroupLevel} {
		referenced, err := q.read(level, subvolume, "referenced")
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil || referenced != 0 {
			return false
		}
		if err := removeQgroup(dir, level<<qgroupLevelShift|subvolume); err != nil && !errors.Is(err, unix.ENOENT) {
			return false
		}
	}
	return true
}

func (q *quota) read(level, subvolume uint64, name string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(q.sysfs, fmt.Sprintf("%d_%d", level, subvolume), name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}
