package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Where numbers are on the disk: number i is at the start of sector
// firstSector + i % sectors, behind the regions of the workers.
const (
	firstSector = 16384
	sectors     = 16384
)

// numbers writes the numbers from 1 on, each to the disk and then to a
// connection, until one of them fails.
func numbers(disk, address string) error {
	f, err := os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT|unix.O_DSYNC, 0)
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", address, 3*time.Minute)
	if err != nil {
		f.Close()
		return err
	}
	sector, err := aligned(512)
	if err != nil {
		return err
	}
	go func() {
		defer f.Close()
		defer c.Close()
		for i := uint64(1); ; i++ {
			binary.LittleEndian.PutUint64(sector, i)
			_, err := f.WriteAt(sector, int64(firstSector+i%sectors)*512)
			if err == nil {
				_, err = fmt.Fprintln(c, i)
			}
			if err != nil {
				fmt.Println("load: numbers end:", err)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	return nil
}
