package control

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/cleave-project/cleave/api"
)

// tokenPrefix lets secret scanners recognise a token.
const tokenPrefix = "cleave_"

// CreateToken makes a bearer token. Its secret is in the answer and nowhere
// else.
func (c *Controller) CreateToken(ctx context.Context, in *api.Token) (*api.Token, error) {
	t := &api.Token{Meta: newMeta(poolProject, &in.Meta), Expires: in.Expires}
	if err := checkMeta("token", &t.Meta); err != nil {
		return nil, err
	}
	if t.Expires != nil && t.Expires.Before(time.Now()) {
		return nil, api.Errorf(api.CodeInvalid, "the token would have expired at %s already", t.Expires.Format(time.RFC3339)).WithField("expires")
	}
	secret := tokenPrefix + rand.Text() + rand.Text()
	t.Hash = tokenHash(secret)
	if err := c.store.Commit(ctx, c.tokens.Create(t)); err != nil {
		return nil, err
	}
	c.emit("token.created", &t.Meta, "", nil)
	shown := *t
	shown.Hash, shown.Secret = "", secret
	return &shown, nil
}

// tokenHash needs no salt and no stretching: a secret has 260 random bits.
func tokenHash(secret string) string {
	h := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(h[:])
}

// Tokens lists the tokens, without their hashes.
func (c *Controller) Tokens(context.Context) ([]api.Token, error) {
	list := []api.Token{}
	for _, t := range c.tokens.All() {
		n := *t
		n.Hash = ""
		c.mu.Lock()
		if used, ok := c.tokenUse[t.ID]; ok {
			n.Used = &used
		}
		c.mu.Unlock()
		list = append(list, n)
	}
	return list, nil
}

// DeleteToken ends a token's validity at once.
func (c *Controller) DeleteToken(_ context.Context, name string) error {
	t, err := c.tokens.Get(poolProject, name)
	if err != nil {
		return err
	}
	if err := c.commit(c.tokens.Delete(t)); err != nil {
		return err
	}
	c.emit("token.deleted", &t.Meta, "", nil)
	return nil
}

// CheckToken finds the token of a secret. Comparing hashes as map keys or
// strings tells an attacker nothing about the secret.
func (c *Controller) CheckToken(secret string) (*api.Token, error) {
	hash := tokenHash(secret)
	for _, t := range c.tokens.All() {
		if t.Hash != hash {
			continue
		}
		if t.Expires != nil && time.Now().After(*t.Expires) {
			return nil, api.Errorf(api.CodeUnauthorized, "token %q expired at %s", t.Name, t.Expires.Format(time.RFC3339)).WithHint("`cleave token create` on the host makes a new one")
		}
		c.mu.Lock()
		c.tokenUse[t.ID] = time.Now().UTC()
		c.mu.Unlock()
		return t, nil
	}
	return nil, api.Errorf(api.CodeUnauthorized, "the token is not known").WithHint("`cleave token create` on the host makes one")
}
