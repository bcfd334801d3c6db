package control

import (
	"context"
	"os"
	"time"

	"github.com/cleave-project/cleave/vmm/migrate"
)

// Migrate says how a guest is to leave.
type Migrate struct {
	// Identity is needed unless the connections are unix sockets.
	Identity *Identity `json:"identity,omitempty"`
	// Downtime is how long the guest may stand still, in nanoseconds; 0 is 300
	// ms.
	Downtime time.Duration `json:"downtime,omitempty"`
	// NoThrottle has the guest stay rather than be slowed down.
	NoThrottle bool `json:"no_throttle,omitempty"`
	// PostCopy has the guest go on there before all of its memory is there.
	PostCopy bool `json:"post_copy,omitempty"`
	// Resume goes on with one that was interrupted: all else is as it was.
	Resume bool `json:"resume,omitempty"`
	// Mirror names disks whose content goes along. All others have to be there.
	Mirror []string `json:"mirror,omitempty"`
}

// Identity is migrate.Identity.
type Identity struct {
	Certificate []byte `json:"certificate"`
	Key         []byte `json:"key"`
	Roots       []byte `json:"roots"`
	Peer        string `json:"peer"`
}

// States of a migration.
const (
	Leaving   = "leaving"
	Awaiting  = "awaiting" // that a guest comes
	Arriving  = "arriving"
	Gone      = "gone"
	Stayed    = "stayed"
	Arrived   = "arrived"
	Undecided = "undecided" // paused until SettleMigration
	// Following is that the guest runs at the destination, and a part of its
	// memory follows; Interrupted, at the source, that it doesn't until Resume.
	Following   = "following"
	Interrupted = "interrupted"
)

// Migration is how one goes, or went.
type Migration struct {
	State string `json:"state"` // empty for none
	migrate.Report
	Error string `json:"error,omitempty"`
}

// Settle decides who has the guest. Before one side is told that it is here,
// the other has to have been told that it is not, or to be no more.
type Settle struct {
	Here bool `json:"here"`
}

// Migrate implements Machine. The files stay the caller's too.
func (c *Client) Migrate(ctx context.Context, m Migrate, files []*os.File) (out Migration, err error) {
	return out, c.ask(ctx, "migrate", m, &out, files...)
}

// Migration implements Machine.
func (c *Client) Migration(ctx context.Context) (out Migration, err error) {
	return out, c.ask(ctx, "migration", nil, &out)
}

// CancelMigration implements Machine.
func (c *Client) CancelMigration(ctx context.Context) error {
	return c.ask(ctx, "cancel-migration", nil, nil)
}

// SettleMigration implements Machine.
func (c *Client) SettleMigration(ctx context.Context, s Settle) error {
	return c.ask(ctx, "settle-migration", s, nil)
}
