package ports

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
	"time"
)

// The numbers end below those that systems give to outgoing connections (32768 on Linux). The upper half guards the lower:
// who listens at a number's guard has the number. Nothing needs to be tidied up after a process that dies, and the
// guards reach as far as the numbers do, which is a network namespace.
const (
	lowest = 12000
	count  = 10000
	tries  = 1000
)

// Claim holds numbers until it is released. The zero value holds none. It is not for several goroutines at once.
type Claim struct {
	guards []net.Listener
}

// Take adds a number p to the claim for which p and each p+more are free. The numbers above must be less than
// 10,000 away.
func (c *Claim) Take(more ...int) (int, error) {
	for range tries {
		p := lowest + rand.IntN(count)
		guards, err := guard(p, append([]int{0}, more...))
		if err == nil {
			c.guards = append(c.guards, guards...)
			return p, nil
		}
	}
	return 0, errors.New("no port is free on 127.0.0.1")
}

// Release gives all numbers back.
func (c *Claim) Release() {
	closeAll(c.guards)
	c.guards = nil
}

// guard listens at the guards of p+each offset, or at none.
func guard(p int, offsets []int) ([]net.Listener, error) {
	var guards []net.Listener
	for _, o := range offsets {
		g, err := guardOne(p + o)
		if err != nil {
			closeAll(guards)
			return nil, err
		}
		guards = append(guards, g)
	}
	return guards, nil
}

func guardOne(p int) (net.Listener, error) {
	if p < lowest || p >= lowest+count {
		return nil, fmt.Errorf("port %d is not for tests", p)
	}
	g, err := net.Listen("tcp", address(p+count))
	if err != nil {
		return nil, err
	}
	if foreign(address(p)) {
		_ = g.Close()
		return nil, fmt.Errorf("another program has port %d", p)
	}
	return g, nil
}

// foreign finds out whether a program outside these tests listens at the number. It doesn't listen there itself: a program that
// is being started just then would have the listener until it runs, though it was closed here.
func foreign(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return !errors.Is(err, syscall.ECONNREFUSED)
	}
	_ = c.Close()
	return true
}

func address(p int) string { return fmt.Sprintf("127.0.0.1:%d", p) }

func closeAll(guards []net.Listener) {
	for _, g := range guards {
		_ = g.Close()
	}
}
