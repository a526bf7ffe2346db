package store

import "sync"

// dirSyncer makes renames durable. Those who ask for the same directory while a sync is under way share the next one,
// since the one under way may have begun before their rename.
type dirSyncer struct {
	folder func(dir string) error // fsyncs one

	mu   sync.Mutex
	dirs map[string]*dirSync
}

type dirSync struct {
	running bool
	waiting []chan error
}

func (s *dirSyncer) sync(dir string) error {
	s.mu.Lock()
	if s.dirs == nil {
		s.dirs = make(map[string]*dirSync)
	}
	d := s.dirs[dir]
	if d == nil {
		d = &dirSync{}
		s.dirs[dir] = d
	}
	if d.running {
		done := make(chan error, 1)
		d.waiting = append(d.waiting, done)
		s.mu.Unlock()
		return <-done
	}
	d.running = true
	s.mu.Unlock()

	err := s.folder(dir)
	for {
		s.mu.Lock()
		waiting := d.waiting
		d.waiting = nil
		if len(waiting) == 0 {
			delete(s.dirs, dir)
			s.mu.Unlock()
			return err
		}
		s.mu.Unlock()
		shared := s.folder(dir)
		for _, w := range waiting {
			w <- shared
		}
	}
}
