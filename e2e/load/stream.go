package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// streamPatience is less than the host's for an answer.
const streamPatience = 3 * time.Minute

// stream sends MiBs of random numbers to the host and receives as many, and
// tells the sums of what it sent and what it got.
func stream(address string, mib int) (string, error) {
	c, err := net.DialTimeout("tcp", address, streamPatience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(streamPatience)); err != nil {
		return "", err
	}
	sent, got := sha256.New(), sha256.New()
	received := make(chan error, 1)
	go func() {
		n, err := io.Copy(got, c)
		if err == nil && n != int64(mib)<<20 {
			err = fmt.Errorf("%d bytes came", n)
		}
		received <- err
	}()
	random := rand.NewChaCha8([32]byte{1})
	if _, err := io.CopyN(io.MultiWriter(c, sent), random, int64(mib)<<20); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	err = <-received
	return fmt.Sprintf("%x %x", sent.Sum(nil), got.Sum(nil)), err
}
