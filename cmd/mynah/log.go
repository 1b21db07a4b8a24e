package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"mynah/broker/msglog"
)

type logCmd struct {
	Storage
	Tail   int    `placeholder:"N" help:"Print the newest N messages, one JSON object a line, as subscribers get them."`
	Topic  string `placeholder:"TOPIC" help:"Only those of user/ID or group/ID; 10 unless --tail says otherwise."`
	Verify bool   `help:"Read everything and check checksums, order and indexes. Exit status 1 if something is wrong."`
	Repair bool   `help:"Make a log usable again that the broker refuses because acknowledged messages are missing at its end: give up what cannot be read, keep the damaged files beside it, and say what is lost. The broker must be stopped."`
}

// Run looks at the message log without changing it, unless it is to be repaired: beside
// a running broker, as it was at this moment, or in a stopped one's folder.
func (c *logCmd) Run(ctx context.Context, p *process) (err error) {
	if err := c.validate(); err != nil {
		return err
	}
	if c.Tail < 0 {
		return refuse("tail", "is below zero; give a number of messages")
	}
	if c.Repair {
		return c.repair(ctx, p)
	}
	log, err := msglog.Inspect(ctx, c.folder())
	if errors.Is(err, fs.ErrNotExist) {
		return c.noLog()
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()

	switch {
	case c.Verify:
		return c.verify(ctx, p, log)
	case c.Tail > 0 || c.Topic != "":
		return c.tail(ctx, p, log)
	}
	c.outline(p, log.Info())
	return nil
}

// repair gives up what cannot be read at the log's end and prints what that was.
func (c *logCmd) repair(ctx context.Context, p *process) error {
	dir := c.folder()
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return c.noLog()
	}
	done, err := msglog.Repair(ctx, dir, msglog.Options{})
	switch {
	case errors.Is(err, msglog.ErrInUse):
		return refuse("data-dir", "the message log in %s is in use by a running broker; stop it, then repair", dir)
	case err != nil:
		return err
	}
	p.line("folder", "%s", dir)
	if done.LastLost == 0 && done.Changes == 0 && len(done.Kept) == 0 {
		p.line("sound", "nothing that was acknowledged is missing at its end; nothing was changed")
		return nil
	}
	if done.LastLost != 0 {
		p.line("lost", "messages %d to %d; those that the archiver had stored are in table messages under these seqs", done.FirstLost, done.LastLost)
	}
	if done.Changes != 0 {
		p.line("lost", "%d changes to sessions: some clients may get messages again, or have to subscribe anew", done.Changes)
	}
	for _, file := range done.Kept {
		p.line("kept", "%s, as it was", file)
	}
	p.line("repaired", "the broker can be started")
	return nil
}

// folder is where the broker has its message log.
func (c *logCmd) folder() string { return filepath.Join(c.DataDir, brokerFolder, "log") }

func (c *logCmd) noLog() error {
	return refuse("data-dir", "%s holds no message log; name the one that the broker was started with", c.DataDir)
}

// line prints a name and what there is to say under it.
func (p *process) line(name, format string, args ...any) {
	fmt.Fprintf(p.stdout, "%-10s %s\n", name, fmt.Sprintf(format, args...))
}

func (c *logCmd) outline(p *process, info msglog.Info) {
	p.line("folder", "%s", info.Dir)
	if info.InUseBy != 0 {
		p.line("in use", "by process %d; this is the log as it was a moment ago", info.InUseBy)
	} else {
		p.line("in use", "by nobody")
	}
	p.line("format", "%d", info.Format)
	p.line("messages", "%d", info.Messages)
	if info.Messages > 0 {
		p.line("oldest", "seq %d, %s", info.First, info.Oldest.UTC().Format(time.RFC3339))
		p.line("newest", "seq %d, %s", info.Last, info.Newest.UTC().Format(time.RFC3339))
	}
	p.line("size", "%.1f MB of messages, %.1f MB on disk, %.1f GB free", float64(info.Bytes)/1e6, float64(info.DiskBytes)/1e6, float64(info.DiskFree)/1e9)
}

// tail prints the newest messages, oldest of them first.
func (c *logCmd) tail(ctx context.Context, p *process, log *msglog.Inspector) error {
	want := c.Tail
	if want == 0 {
		want = 10
	}
	info := log.Info()
	if info.Messages == 0 {
		return nil
	}
	// A topic's newest may lie anywhere, so the look goes back further and
	// further; over all topics the first step is enough.
	var found []*msglog.Record
	for back := uint64(want); ; back *= 16 {
		after := info.First - 1
		if back < info.Messages {
			after = info.Last - back
		}
		found = found[:0]
		keep := func(r *msglog.Record) bool { found = append(found, r); return true }
		var err error
		if c.Topic == "" {
			err = log.Read(ctx, after, info.Last, keep)
		} else {
			err = log.ReadTopic(ctx, c.Topic, after, info.Last, keep)
		}
		if err != nil {
			return err
		}
		if len(found) >= want || after < info.First {
			break
		}
	}
	var out []byte
	for _, r := range found[max(0, len(found)-want):] {
		prev := r.Prev
		// A direct message has a place on the sender's own topic too.
		if r.To != c.Topic && c.Topic != "" {
			prev = r.PrevSender
		}
		out = append(r.AppendEnvelope(out[:0], prev), '\n')
		fmt.Fprint(p.stdout, string(out))
	}
	return nil
}

// errDamaged is returned after --verify has told what is wrong.
var errDamaged = errors.New("the message log is damaged; stop the broker and restore its folder, or start it: it refuses what it cannot read and serves the rest")

func (c *logCmd) verify(ctx context.Context, p *process, log *msglog.Inspector) error {
	report, err := log.Verify(ctx)
	if err != nil {
		return fmt.Errorf("verify the message log: %w", err)
	}
	c.outline(p, log.Info())
	if report.Found == 0 {
		fmt.Fprintf(p.stdout, "%-10s %d messages, all well\n", "verified", report.Messages)
		return nil
	}
	fmt.Fprintf(p.stdout, "%-10s %d messages, %d problems:\n%s\n", "verified", report.Messages, report.Found, strings.Join(report.Problems, "\n"))
	return errDamaged
}
