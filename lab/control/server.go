package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/lab"
	"github.com/cleave-project/cleave/lab/appliance"
)

// server is the lab's process.
type server struct {
	lab  *lab.Lab
	down context.CancelFunc

	mu        sync.Mutex
	listeners map[*answer]bool // who hears what is done
	conns     map[net.Conn]bool
}

// Serve is the lab's process: it answers requests until ctx ends, or one says
// that the lab is to go down. ready is called when it answers.
func Serve(ctx context.Context, dir string, img *appliance.Image, ready func()) error {
	held, err := lock(dir)
	if err != nil {
		return fmt.Errorf("lock the lab's directory: %w", err)
	}
	defer held.Close()
	l, err := net.Listen("unix", filepath.Join(dir, fileSocket))
	if err != nil {
		return err
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{down: cancel, listeners: map[*answer]bool{}, conns: map[net.Conn]bool{}}
	if s.lab, err = lab.New(lab.Options{Dir: filepath.Join(dir, dirLab), Image: img, Tell: s.tell}); err != nil {
		return err
	}
	var serving sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	ready()
	for {
		conn, err := l.Accept()
		if err != nil {
			break // it was closed
		}
		s.mu.Lock()
		s.conns[conn] = true
		s.mu.Unlock()
		serving.Go(func() {
			defer func() {
				conn.Close()
				s.mu.Lock()
				delete(s.conns, conn)
				s.mu.Unlock()
			}()
			s.handle(ctx, conn)
		})
	}
	err = s.lab.Close()
	s.mu.Lock()
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	serving.Wait()
	return errors.Join(err, os.RemoveAll(dir))
}

// tell tells all who listen, and the log.
func (s *server) tell(what string) {
	slog.Info(what)
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := range s.listeners {
		a.send(reply{Tell: what})
	}
}

// answer is the connection of one request.
type answer struct {
	mu   sync.Mutex // one reply at a time
	conn net.Conn
}

func (a *answer) send(r reply) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = json.NewEncoder(a.conn).Encode(r) // who doesn't listen any more has gone
}

func (s *server) handle(ctx context.Context, conn net.Conn) {
	var q request
	if err := json.NewDecoder(io.LimitReader(conn, maxMessage)).Decode(&q); err != nil {
		return
	}
	a := &answer{conn: conn}
	if q.Op == opDial {
		s.dial(ctx, q, a)
		return
	}
	s.mu.Lock()
	s.listeners[a] = true
	s.mu.Unlock()
	// Whoever asks may go away: then what it waits for ends.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // until the connection is closed
		_, _ = io.Copy(io.Discard, conn)
		cancel()
	}()
	result, err := s.do(ctx, q)
	s.mu.Lock()
	delete(s.listeners, a)
	s.mu.Unlock()
	last := reply{Done: true}
	if err == nil && result != nil {
		last.Result, err = json.Marshal(result)
	}
	if err != nil {
		last.Error = api.AsError(err)
	}
	if q.Op == opDown {
		// The answer is that the socket closes, when all has ended.
		s.down()
		<-ctx.Done()
		return
	}
	a.send(last)
}

// dial makes the connection one to an agent.
func (s *server) dial(ctx context.Context, q request, a *answer) {
	hosts, err := s.named(q.Hosts)
	var agent net.Conn
	if err == nil {
		agent, err = hosts[0].Dial(ctx)
	}
	if err != nil {
		a.send(reply{Done: true, Error: api.AsError(err)})
		return
	}
	a.send(reply{Done: true})
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(a.conn, agent)
		a.conn.Close()
	})
	_, _ = io.Copy(agent, a.conn)
	agent.Close()
	back.Wait()
}

func (s *server) named(names []string) ([]*lab.Host, error) {
	if len(names) == 0 {
		return nil, errors.New("no host is named")
	}
	var hosts []*lab.Host
	for _, name := range names {
		h, err := s.lab.Host(name)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// do does what a request asks for.
func (s *server) do(ctx context.Context, q request) (any, error) {
	switch q.Op {
	case opList:
		return s.status(), nil
	case opAdd:
		hosts, err := s.lab.Add(q.Specs...)
		if err != nil {
			return nil, err
		}
		return nil, s.lab.Boot(ctx, hosts...)
	case opLink:
		if q.Link == nil {
			return nil, errors.New("no link is named")
		}
		return nil, s.lab.Link(*q.Link)
	case opDown:
		return nil, nil
	}
	hosts, err := s.named(q.Hosts)
	if err != nil {
		return nil, err
	}
	if q.Op == opBoot {
		return nil, s.lab.Boot(ctx, hosts...)
	}
	var lost int64
	for _, h := range hosts {
		switch q.Op {
		case opKill:
			h.Kill()
		case opPower:
			lost += h.LosePower()
		case opOff:
			err = h.PowerOff(ctx)
		case opPause:
			err = h.Pause()
		case opResume:
			err = h.Resume()
		default:
			err = api.Errorf(api.CodeUnsupported, "the lab doesn't know %q", q.Op).WithHint("it runs an older version: `lab down`, and `lab up` again")
		}
		if err != nil {
			return nil, err
		}
	}
	return lost, nil
}

func (s *server) status() Status {
	st := Status{PID: os.Getpid(), Image: s.lab.Image.Dir}
	hosts := s.lab.Hosts()
	for _, h := range hosts {
		st.Hosts = append(st.Hosts, Host{Spec: h.Spec, State: h.State(), Address: h.Address, Console: h.Console()})
		for _, to := range hosts {
			if to != h {
				st.Links = append(st.Links, Link{h.Name, to.Name, s.lab.Wire.Rule(h.Name, to.Name), s.lab.Wire.Counters(h.Name, to.Name)})
			}
		}
	}
	return st
}
