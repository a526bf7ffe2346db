package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"pier/api/client"
)

const (
	auditSize   = 64 << 20 // a file, before the next one begins
	auditBehind = 4        // older files that are kept
	auditBlock  = 64 << 10 // is read at a time, from the end
	auditLine   = 1 << 20  // more than any line has
	auditSlack  = time.Minute
)

// auditLog is one kind of lines, in files: the newest under the name, older ones numbered. Changes, refusals and pulls have
// one each, so that many of one kind don't push the others out.
type auditLog struct {
	path string
	file *os.File
	size int64
}

func (w *auditLog) write(line []byte) error {
	if w.file != nil && w.size+int64(len(line)) > auditSize {
		if err := w.close(); err != nil {
			return err
		}
		for i := auditBehind - 1; i >= 0; i-- {
			if err := os.Rename(w.numbered(i), w.numbered(i+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	if w.file == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	n, err := w.file.Write(line)
	w.size += int64(n)
	if err != nil {
		return errors.Join(err, w.close()) // what came of it is a torn line
	}
	return nil
}

// open goes on behind what is there. A line that a crash or a full disk has cut off is ended, or the next would be lost with it.
func (w *auditLog) open() error {
	f, err := os.OpenFile(w.path, os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() > 0 {
		last := make([]byte, 1)
		if _, err = f.ReadAt(last, info.Size()-1); err == nil && last[0] != '\n' {
			_, err = f.Write([]byte{'\n'})
		}
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w.file, w.size = f, info.Size()
	return nil
}

func (w *auditLog) numbered(i int) string {
	if i == 0 {
		return w.path
	}
	return fmt.Sprintf("%s.%d", w.path, i)
}

func (w *auditLog) close() error {
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}

// auditQuery chooses lines: the newest limit of them, or where follow is set the oldest limit behind after.
type auditQuery struct {
	since                 time.Time
	principal, repository string
	follow                bool
	after                 uint64
	limit                 int
}

func (q auditQuery) keeps(l client.AuditLine) bool {
	return l.Time.After(q.since) && (q.principal == "" || l.Principal == q.principal || l.Claimed == q.principal) &&
		(q.repository == "" || l.Repository == q.repository)
}

// mayKeep looks at the bytes of a line: most of a long log needs no more.
func (q auditQuery) mayKeep(line []byte) bool {
	return bytes.Contains(line, []byte(q.principal)) && bytes.Contains(line, []byte(q.repository))
}

// find gives the lines of the log up to number end that the query chooses, in any order. It reads from the newest back.
func (w *auditLog) find(q auditQuery, end uint64) ([]client.AuditLine, error) {
	var out []client.AuditLine
	last := end + 1
	visit := func(line []byte) bool {
		seq, at, ok := auditHead(line)
		switch {
		case !ok || seq >= last: // seen before: the file was renamed meanwhile
			return true
		case q.follow && seq <= q.after, !q.since.IsZero() && before(at, q.since.Add(-auditSlack)):
			return false
		}
		last = seq
		var l client.AuditLine
		if !q.mayKeep(line) || json.Unmarshal(line, &l) != nil || !q.keeps(l) {
			return true
		}
		if out = append(out, l); q.follow && len(out) > 2*q.limit {
			out = slices.Delete(out, 0, len(out)-q.limit)
		}
		return q.follow || len(out) < q.limit
	}
	for i := range auditBehind + 1 {
		more, err := backwards(w.numbered(i), visit)
		if err != nil || !more {
			return out, err
		}
	}
	return out, nil
}

// newest is the number of the last line.
func (w *auditLog) newest() (uint64, error) {
	var last uint64
	for i := range auditBehind + 1 {
		more, err := backwards(w.numbered(i), func(line []byte) bool {
			seq, _, ok := auditHead(line)
			last = seq
			return !ok
		})
		if err != nil || !more {
			return last, err
		}
	}
	return last, nil
}

// auditHead reads a line's number, and finds its time, which come first.
func auditHead(line []byte) (seq uint64, at []byte, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"seq":`))
	number, rest, found := bytes.Cut(rest, []byte(`,"time":"`))
	at, _, closed := bytes.Cut(rest, []byte(`"`))
	if !ok || !found || !closed {
		return 0, nil, false
	}
	seq, err := strconv.ParseUint(string(number), 10, 64)
	return seq, at, err == nil
}

func before(at []byte, limit time.Time) bool {
	t, err := time.Parse(time.RFC3339Nano, string(at))
	return err == nil && t.Before(limit)
}

// backwards shows visit the lines of a file, the last one first, until it has enough; more tells that it hasn't. What stands
// behind the last line's end was cut off by a crash, or is being written.
func backwards(path string, visit func(line []byte) bool) (more bool, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	var rest []byte // of a line whose beginning is to come
	torn := true
	for at > 0 && len(rest) < auditLine {
		n := min(auditBlock, at)
		at -= n
		buf := make([]byte, n, int(n)+len(rest))
		if _, err := f.ReadAt(buf, at); err != nil {
			return false, err
		}
		buf = append(buf, rest...)
		for i := bytes.LastIndexByte(buf, '\n'); i >= 0; i = bytes.LastIndexByte(buf, '\n') {
			line := buf[i+1:]
			buf = buf[:i]
			if !torn && !visit(line) {
				return false, nil
			}
			torn = false
		}
		rest = buf
	}
	return torn || visit(rest), nil
}
