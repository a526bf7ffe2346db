package ports

import (
	"net"
	"testing"
)

// Whoever asks gets numbers that nobody else holds, though nothing listens at them.
func TestTake(t *testing.T) {
	var one, other Claim
	t.Cleanup(one.Release)
	t.Cleanup(other.Release)
	held := make(map[int]bool)
	for i := range 500 {
		c := &one
		if i%2 == 1 {
			c = &other
		}
		p, err := c.Take(1)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{p, p + 1} {
			if held[n] {
				t.Fatalf("%d was given twice", n)
			}
			held[n] = true
			lis, err := net.Listen("tcp", address(n))
			if err != nil {
				t.Fatal(err)
			}
			_ = lis.Close()
		}
	}
}

// What is given back can be taken again. Another test may be faster, but not for each of them.
func TestRelease(t *testing.T) {
	var c Claim
	var numbers []int
	for range 10 {
		p, err := c.Take()
		if err != nil {
			t.Fatal(err)
		}
		if g, err := guardOne(p); err == nil {
			_ = g.Close()
			t.Fatal("a number that is held can be taken")
		}
		numbers = append(numbers, p)
	}
	c.Release()
	again := 0
	for _, p := range numbers {
		if g, err := guardOne(p); err == nil {
			_ = g.Close()
			again++
		}
	}
	if again == 0 {
		t.Fatal("no number came back")
	}
}

// A number that another program has is not given.
func TestTakenElsewhere(t *testing.T) {
	var c Claim
	t.Cleanup(c.Release)
	p, err := c.Take()
	if err != nil {
		t.Fatal(err)
	}
	c.Release()
	lis, err := net.Listen("tcp", address(p))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lis.Close() }()
	if _, err := guardOne(p); err == nil {
		t.Fatal("a number that is taken was given")
	}
}
