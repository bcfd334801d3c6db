package main

import (
	"fmt"
	"sync"
	"time"
)

// words are those of a page.
const words = 512

// pages are memory of which each page is made of its number and of how often
// it was changed: one from another moment than the rest shows.
type pages struct {
	mu      sync.Mutex
	content [][words]uint64
	times   []uint64
	changes uint64
}

func newMemory(n int) *pages {
	m := &pages{content: make([][words]uint64, n), times: make([]uint64, n)}
	for i := range m.content {
		m.fill(i)
	}
	return m
}

// word is what page i has at j.
func (m *pages) word(i, j int) uint64 {
	x := uint64(i)<<40 ^ m.times[i]<<10 ^ uint64(j) + 1
	x *= 0x9e3779b97f4a7c15
	return x ^ x>>29
}

func (m *pages) fill(i int) {
	for j := range m.content[i] {
		m.content[i][j] = m.word(i, j)
	}
}

func (m *pages) right(i int) bool {
	for j, w := range m.content[i] {
		if w != m.word(i, j) {
			return false
		}
	}
	return true
}

// change changes page after page for ever, in an order that comes by all. It
// leaves most of the processor to what else the guest does.
func (m *pages) change() {
	for i := 0; ; i = (i + 1027) % len(m.content) {
		if i%64 == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		m.mu.Lock()
		if m.right(i) { // one that is wrong stays so, for check
			m.times[i]++
			m.changes++
			m.fill(i)
		}
		m.mu.Unlock()
	}
}

// check looks at all pages of one moment.
func (m *pages) check() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	wrong, sum := 0, uint64(0)
	for i := range m.content {
		if !m.right(i) {
			wrong++
		}
		sum += m.times[i]
	}
	if sum != m.changes {
		wrong++
	}
	return fmt.Sprintf("%d %d", wrong, m.changes)
}
