package store

import (
	"crypto/rand"
	"strings"
)

// NewID makes an id for api.Meta: ten characters of lower-case base32, so
// that it fits into a link's name; 50 random bits.
func NewID() string { return strings.ToLower(rand.Text()[:10]) }
