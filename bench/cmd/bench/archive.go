package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"mynah/bench/load"
)

// measureArchiveDelay publishes at a constant rate and polls PostgreSQL every 10 ms
// for new rows. A message's delay is the time from its acknowledgement to the poll
// that found it. So it is at most 10 ms too long, and never too short.
func measureArchiveDelay(ctx context.Context, t *target) (sample, error) {
	const rate = 5000.0
	pubs, subs, err := t.connectPairs(10, inFlight)
	if err != nil {
		return sample{}, err
	}
	for _, p := range pubs {
		p.AckedAt = make([]int64, 0, int(rate*(t.duration.Seconds()*2+5)))
	}
	look, cancel := context.WithCancel(ctx)
	defer cancel()
	visible := make([]map[uint64]int64, len(pubs))
	for i := range visible {
		visible[i] = map[uint64]int64{}
	}
	found := make(chan int, 1)
	watched := make(chan error, 1)
	go func() { watched <- watchArchive(look, t.pg.URL(t.db), visible, found) }()
	for i, p := range pubs {
		p.PublishAtRate(rate/float64(len(pubs)), time.Duration(i)*200*time.Microsecond)
	}
	cpu0, arch0 := t.cpu()
	began := time.Now()
	if err := t.RunFor(2 * t.duration); err != nil {
		return sample{}, err
	}
	cpu1, arch1 := t.cpu()
	took := time.Since(began)
	sent := map[*load.Subscriber]uint64{}
	total := 0
	for i, p := range pubs {
		p.StopPublishing()
		sent[subs[i]] = p.Sent
		total += int(p.Sent) //nolint:gosec // a small count
	}
	if err := t.waitAllDelivered(pubs, subs, func(s *load.Subscriber) uint64 { return sent[s] }); err != nil {
		return sample{}, err
	}
	n := 0
	if err := t.RunUntil(func() bool {
		select {
		case n = <-found:
		default:
		}
		return n >= total
	}, 30*time.Second, "archive"); err != nil {
		return sample{}, fmt.Errorf("%w: %d of %d messages in PostgreSQL", err, n, total)
	}
	cancel()
	if err := <-watched; err != nil {
		return sample{}, err
	}
	var all []int64
	within := 0
	for i, p := range pubs {
		for k, acked := range p.AckedAt {
			at, ok := visible[i][uint64(k)] //nolint:gosec // an index
			if !ok {
				return sample{}, fmt.Errorf("message %d of publisher %d is not in PostgreSQL", k, i)
			}
			late := max(0, at-acked)
			if late <= (500 * time.Millisecond).Nanoseconds() {
				within++
			}
			all = append(all, late)
		}
	}
	s := sample{Value: 100 * float64(within) / float64(max(1, len(all)))}
	s.add("p50", percentile(all, 50), "ms")
	s.add("p99", percentile(all, 99), "ms")
	s.add("max", percentile(all, 100), "ms")
	s.add("rate", float64(total)/took.Seconds(), "msg/s")
	s.add("broker cores", (cpu1-cpu0).Seconds()/took.Seconds(), "")
	s.add("archiver cores", (arch1-arch0).Seconds()/took.Seconds(), "")
	return s, nil
}

// watchArchive records when each message is first seen, until ctx ends. It sends the
// number of messages to found. found holds the newest number only.
func watchArchive(ctx context.Context, url string, visible []map[uint64]int64, found chan int) error {
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("watch the archive: %w", err)
	}
	defer c.Close(context.WithoutCancel(ctx)) //nolint:errcheck // nothing is lost
	last, n := int64(0), 0
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		rows, err := c.Query(ctx, "SELECT seq, message->>'body' FROM messages WHERE seq > $1 ORDER BY seq", last)
		if err != nil {
			return watchError(ctx, err)
		}
		var body string
		now := int64(0)
		_, err = pgx.ForEachRow(rows, []any{&last, &body}, func() error {
			if now == 0 {
				now = time.Now().UnixNano()
			}
			pub, num, err := parseBody(body)
			if err != nil || pub >= len(visible) {
				return fmt.Errorf("foreign message %d in the archive: %q", last, body)
			}
			visible[pub][num] = now
			n++
			return nil
		})
		if err != nil {
			return watchError(ctx, err)
		}
		select {
		case <-found:
		default:
		}
		found <- n
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func watchError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the query was cancelled by us
	}
	return fmt.Errorf("watch the archive: %w", err)
}

func parseBody(body string) (pub int, n uint64, err error) {
	f := strings.SplitN(body, ":", 4)
	if len(f) < 4 || f[0] != "b" {
		return 0, 0, errors.New("no number")
	}
	if pub, err = strconv.Atoi(f[1]); err != nil {
		return 0, 0, err
	}
	n, err = strconv.ParseUint(f[2], 10, 64)
	return pub, n, err
}

// measureCatchUp publishes while the archiver is off, then starts it and measures the
// time until PostgreSQL has every row. The time begins with the start of the
// archiver's process. Then COPY writes the same rows into a table with the same
// columns, for comparison.
func measureCatchUp(ctx context.Context, t *target) (sample, error) {
	p, err := t.publisher(0, nil, &load.PublishSpec{Topics: []string{"user/s000", "user/s001", "user/s002"}, QoS: 1, Window: 1000})
	if err != nil {
		return sample{}, err
	}
	if err := t.RunUntil(t.Ready, connectTimeout, "connect"); err != nil {
		return sample{}, err
	}
	published := time.Now()
	p.PublishMore(t.catchup)
	if err := t.RunUntil(p.AllAcknowledged, 10*time.Minute, "publish"); err != nil {
		return sample{}, err
	}
	rate := float64(t.catchup) / time.Since(published).Seconds()
	c, err := pgx.Connect(ctx, t.pg.URL(t.db))
	if err != nil {
		return sample{}, err
	}
	defer c.Close(ctx) //nolint:errcheck // nothing is lost
	began := time.Now()
	if err := t.startArchiver(); err != nil {
		return sample{}, err
	}
	// There is one publisher and one order, so the last message is the last row.
	for {
		var body string
		err := c.QueryRow(ctx, "SELECT message->>'body' FROM messages ORDER BY seq DESC LIMIT 1").Scan(&body)
		if err == nil {
			if _, n, err := parseBody(body); err == nil && n == uint64(t.catchup)-1 { //nolint:gosec // a positive number
				break
			}
		} else if !errors.Is(err, pgx.ErrNoRows) {
			return sample{}, err
		}
		if done, exit := t.archiver.Exited(); done {
			return sample{}, fmt.Errorf("the archiver ended: %w: %s", exit, t.archiver.LogTail())
		}
		if time.Since(began) > 20*time.Minute {
			return sample{}, fmt.Errorf("not caught up after 20 minutes, at %q", body)
		}
		if err := t.RunFor(20 * time.Millisecond); err != nil {
			return sample{}, err
		}
	}
	took := time.Since(began)
	var rows, distinct int
	if err := c.QueryRow(ctx, "SELECT count(*), count(DISTINCT message->>'body') FROM messages").Scan(&rows, &distinct); err != nil {
		return sample{}, err
	}
	if rows != t.catchup || distinct != t.catchup {
		return sample{}, fmt.Errorf("%d rows with %d different messages, want %d", rows, distinct, t.catchup)
	}
	s := sample{Value: float64(rows) / took.Seconds()}
	s.add("took", took.Seconds(), "s")
	s.add("archiver CPU", float64(t.archiver.CPU().Microseconds())/float64(rows), "µs/row")
	s.add("published before at", rate, "msg/s")
	plain, err := plainCopy(ctx, c, filepath.Join(t.dir, "rows"))
	if err != nil {
		return s, err
	}
	t.copyRate = float64(rows) / plain.Seconds()
	return s, nil
}

// measureLiveDuringCatchUp measures how much live chat slows down while the archiver catches
// up. Ten pairs have one message in flight each, so their rate depends on the latency. The
// result is the rate during the catch-up divided by the rate before it.
func measureLiveDuringCatchUp(ctx context.Context, t *target) (sample, error) {
	old, err := t.publisher(100, nil, &load.PublishSpec{Topics: []string{"user/x000"}, QoS: 1, Window: 1000})
	if err != nil {
		return sample{}, err
	}
	pubs, subs, err := t.connectPairs(10, 1)
	if err != nil {
		return sample{}, err
	}
	old.PublishMore(t.catchup)
	if err := t.RunUntil(old.AllAcknowledged, 10*time.Minute, "publish"); err != nil {
		return sample{}, err
	}
	for _, p := range pubs {
		p.PublishAtFullSpeed()
	}
	before, err := t.measureDeliveries(ctx, subs)
	if err != nil {
		return sample{}, err
	}
	if err := t.startArchiver(); err != nil {
		return sample{}, err
	}
	during, err := t.measureDeliveries(ctx, subs)
	if err != nil {
		return sample{}, err
	}
	s := sample{Value: during.Value / before.Value}
	s.add("before", before.Value, "msg/s")
	s.add("during", during.Value, "msg/s")
	s.add("archiver cores", t.archiver.CPU().Seconds()/(warmUpTime+t.duration).Seconds(), "")
	sent := map[*load.Subscriber]uint64{}
	for i, p := range pubs {
		p.StopPublishing()
		sent[subs[i]] = p.Sent
	}
	return s, t.waitAllDelivered(pubs, subs, func(sub *load.Subscriber) uint64 { return sent[sub] })
}

// plainCopy copies the rows of messages into a table with the same columns,
// with COPY.
func plainCopy(ctx context.Context, c *pgx.Conn, path string) (time.Duration, error) {
	out, err := os.Create(filepath.Clean(path))
	if err != nil {
		return 0, err
	}
	defer out.Close() //nolint:errcheck // closed below too
	w := bufio.NewWriterSize(out, 1<<20)
	if _, err := c.PgConn().CopyTo(ctx, w, "COPY messages TO STDOUT"); err != nil {
		return 0, fmt.Errorf("copy out: %w", err)
	}
	if err := errors.Join(w.Flush(), out.Close()); err != nil {
		return 0, err
	}
	if _, err := c.Exec(ctx, "CREATE TABLE messages_again (LIKE messages INCLUDING ALL)"); err != nil {
		return 0, err
	}
	if _, err := c.Exec(ctx, "CHECKPOINT"); err != nil {
		return 0, err
	}
	in, err := os.Open(filepath.Clean(path))
	if err != nil {
		return 0, err
	}
	defer in.Close() //nolint:errcheck // only read
	began := time.Now()
	if _, err := c.PgConn().CopyFrom(ctx, bufio.NewReaderSize(in, 1<<20), "COPY messages_again FROM STDIN"); err != nil {
		return 0, fmt.Errorf("copy in: %w", err)
	}
	return time.Since(began), nil
}
