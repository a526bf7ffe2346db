package promises

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"pier/api/client"
	"pier/cmd/pier/node"
	"pier/test/harness"
)

// pullers is how many clients pull at a time.
const pullers = 4

// shop is one node that clients pull from, each over a connection of its own that it keeps.
type shop struct {
	*harness.Node
	clients [pullers]*http.Client
	tokens  [pullers]string // empty: the registry is open
}

// openShop starts a node alone. With grants it has access control, the clients log in, and there are that many grants.
func openShop(b *testing.B, grants int, secure bool) *shop {
	b.Helper()
	c := harness.StartConfigured(b, 1, node.Tuning{TokenLife: 24 * time.Hour}, func(_ *harness.Node, cfg *node.Config) {
		cfg.AccessLog = false
		if secure {
			cfg.Access.TLS = "auto"
		}
	})
	s := &shop{Node: c.Nodes[0]}
	ca, err := s.Control().Authority(b.Context())
	c.Must(err)
	c.Trust([]byte(ca.PEM))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca.PEM))
	for i := range s.clients {
		t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}} // a protocol of its own settings: HTTP/1.1
		b.Cleanup(t.CloseIdleConnections)
		s.clients[i] = &http.Client{Transport: t}
	}
	if grants > 0 {
		g := closeDoor(b, c, []byte(ca.PEM))
		g.crowd(grants/50, 50)
		for i := range s.tokens {
			who := g.robot(fmt.Sprintf("puller%d", i), "pull:team/*")
			s.tokens[i], _, err = tokens(s.Client, "pull", url.Values{"grant_type": {"password"}, "username": {who.name}, "password": {who.secret}})
			c.Must(err)
		}
		s.Client = s.As(g.root.basic())
	}
	return s
}

// crowd makes robots with grants on repositories of their own.
func (g *guarded) crowd(robots, grants int) {
	g.T.Helper()
	var all errgroup.Group
	all.SetLimit(32)
	for i := range robots {
		all.Go(func() error {
			r := client.RobotRequest{Name: fmt.Sprintf("robot%d", i)}
			for j := range grants {
				r.Grants = append(r.Grants, grant(r.Name, fmt.Sprintf("push:group%d/**/app-%d*", i, j)))
			}
			_, err := g.Nodes[0].Control().AddRobot(g.T.Context(), r)
			return err
		})
	}
	g.Must(all.Wait())
}

// turn is what some pulls took: pulls in a second, and the processors' time for each, servers and clients together. On a
// machine that has other things to do the second is what to look at.
type turn struct{ rate, cpu float64 }

// pull lets each client pull n blobs.
func (s *shop) pull(b *testing.B, blobs []digest.Digest, n int) turn {
	b.Helper()
	started, used := time.Now(), processorTime(b)
	var all errgroup.Group
	for i, h := range s.clients {
		all.Go(func() error {
			for j := range n {
				req, err := http.NewRequestWithContext(b.Context(), "GET", s.URL()+"/v2/team/app/blobs/"+blobs[(i+j)%len(blobs)].String(), nil)
				if err != nil {
					return err
				}
				if s.tokens[i] != "" {
					req.Header.Set("Authorization", "Bearer "+s.tokens[i])
				}
				resp, err := h.Do(req)
				if err != nil {
					return err
				}
				got, err := io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK || got != resp.ContentLength {
					return fmt.Errorf("%s: %d bytes, %w", resp.Status, got, err)
				}
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		b.Fatal(err)
	}
	pulls := float64(n * len(s.clients))
	return turn{pulls / time.Since(started).Seconds(), (processorTime(b) - used).Seconds() / pulls}
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPull is the same pulls from an open registry, from one with access control, and from both over TLS, in turn: the
// ratios are medians of what each turn gave. Clients and servers share the machine.
func BenchmarkPull(b *testing.B) {
	shops := []*shop{openShop(b, 0, false), openShop(b, 10_000, false), openShop(b, 0, true), openShop(b, 50, true)}
	for _, kind := range []struct {
		name              string
		size, n, distinct int
	}{{"4KiB", 4 << 10, 50, 16}, {"1MiB", 1 << 20, 10, 8}, {"64MiB", 64 << 20, 1, 2}} {
		b.Run(kind.name, func(b *testing.B) {
			var blobs []digest.Digest
			for range kind.distinct {
				data := make([]byte, kind.size)
				_, _ = rand.Read(data) // never fails
				d := digest.FromBytes(data)
				blobs = append(blobs, d)
				for _, s := range shops {
					if err := s.PushBlob("team/app", d, data); err != nil {
						b.Fatal(err)
					}
				}
			}
			for _, s := range shops {
				s.pull(b, blobs, kind.distinct) // verified and in memory
			}
			turns := make([][]turn, len(shops))
			for n := 0; b.Loop(); n++ {
				for i := range shops {
					at := (i + n) % len(shops)
					turns[at] = append(turns[at], shops[at].pull(b, blobs, kind.n))
				}
			}
			report(b, kind.size, turns)
		})
	}
}

func report(b *testing.B, size int, turns [][]turn) {
	open, closed, openTLS, closedTLS := turns[0], turns[1], turns[2], turns[3]
	rate, cpu := func(t turn) float64 { return t.rate }, func(t turn) float64 { return 1 / t.cpu }
	b.ReportMetric(0, "ns/op") // a turn's time says nothing
	b.ReportMetric(ratio(open, nil, rate)*float64(size)/1e6, "MB/s-open")
	b.ReportMetric(ratio(closed, nil, rate)*float64(size)/1e6, "MB/s-closed")
	b.ReportMetric(ratio(closed, open, rate), "closed/open")
	b.ReportMetric(ratio(closed, open, cpu), "closed/open-cpu")
	b.ReportMetric(ratio(closedTLS, openTLS, cpu), "closed/open-TLS-cpu")
	b.ReportMetric(ratio(openTLS, open, rate), "TLS/plain")
	b.ReportMetric(ratio(openTLS, open, cpu), "TLS/plain-cpu")
}

// ratio is the median over the turns of a's value in terms of b's, or of a's alone.
func ratio(a, b []turn, value func(turn) float64) float64 {
	var all []float64
	for i := range a {
		v := value(a[i])
		if b != nil {
			v /= value(b[i])
		}
		all = append(all, v)
	}
	slices.Sort(all)
	return all[len(all)/2]
}
