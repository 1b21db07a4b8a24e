package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

// Exit statuses.
const (
	exitOK      = 0
	exitFailure = 1 // the command could not do what it was asked; stderr says why
	exitUsage   = 2 // the command line could not be understood
)

// secondSignalGrace is how long after the first signal another one counts as a second.
const secondSignalGrace = time.Second

// cli is the grammar of the command line.
type cli struct {
	HelpAll helpAll `help:"Like --help, with the limits that are rarely changed."`
	Config  string  `placeholder:"FILE" help:"YAML or JSON file with flags' names as keys. Flags and environment win over it."`

	Serve    serveCmd    `cmd:"" help:"Broker, archiver and API in one process. Without --database-url it starts a private PostgreSQL under the data directory."`
	Broker   brokerCmd   `cmd:"" help:"The broker alone."`
	Archiver archiverCmd `cmd:"" help:"The archiver alone: from the broker's log into PostgreSQL."`
	API      apiCmd      `cmd:"" name:"api" help:"The HTTP API alone: accounts, contacts, groups, devices."`
	Migrate  migrateCmd  `cmd:"" help:"Bring the database to this version. Safe to repeat."`
	Token    tokenCmd    `cmd:"" help:"Print a token signed with the configured secret. Needs no server."`
	Log      logCmd      `cmd:"" help:"Look at the broker's message log, read-only: its range and size, its newest messages, or whether all is well."`
	Health   healthCmd   `cmd:"" hidden:"" help:"Ask a running mynah whether it is ready: exit status 0 if so. For containers without curl."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
}

// process is the environment of a command besides its settings.
type process struct {
	program        string // how it was called
	getenv         func(string) string
	stdout, stderr io.Writer
	timeouts       webTimeouts
}

// grammarOptions are the options without which the grammar is none.
var grammarOptions = []kong.Option{
	kong.Name("mynah"),
	kong.ExplicitGroups(groupTitles),
	defaults,
	kong.TypeMapper(reflect.TypeFor[time.Duration](), kong.MapperFunc(duration)),
}

// helpAll is a flag that shows the help with all flags.
type helpAll bool

// IgnoreDefault has it looked at before commands are chosen, as --help is.
func (helpAll) IgnoreDefault() {}

// BeforeReset prints the help, before anything that is missing could be refused.
func (helpAll) BeforeReset(ctx *kong.Context) error {
	showLimits(ctx.Model.Node, true)
	if err := ctx.PrintUsage(false); err != nil {
		return err
	}
	ctx.Exit(0)
	return nil
}

// showLimits says whether the flags of the group of limits are in the help.
func showLimits(node *kong.Node, show bool) {
	for _, flag := range node.Flags {
		if flag.Group != nil && flag.Group.Key == limitsGroup {
			flag.Hidden = !show
		}
	}
	for _, child := range node.Children {
		showLimits(child, show)
	}
}

// run is main with everything handed in, and the exit status returned.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	p := &process{program: os.Args[0], getenv: getenv, stdout: stdout, stderr: stderr, timeouts: defaultWebTimeouts}
	return p.run(ctx, args)
}

// run runs the command of the arguments and returns the exit status.
func (p *process) run(ctx context.Context, args []string) int {
	fail := func(status int, err error) int {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintf(p.stderr, "mynah: %s\n", line)
		}
		return status
	}

	var (
		grammar   cli
		resolvers []kong.Resolver
	)
	// The last resolver wins, so the file comes before the environment.
	if path := configPath(args, p.getenv); path != "" {
		file, err := configFile(path)
		if err != nil {
			return fail(exitFailure, err)
		}
		resolvers = append(resolvers, file)
	}
	resolvers = append(resolvers, environment(p.getenv))

	exited := -1
	parser, err := kong.New(&grammar, append(slices.Clone(grammarOptions),
		kong.Description("An instant-messaging backend that speaks MQTT."),
		kong.Writers(p.stdout, p.stderr),
		kong.Resolvers(resolvers...),
		kong.ValueFormatter(helpWithEnv),
		kong.ConfigureHelp(kong.HelpOptions{NoExpandSubcommands: true}),
		// --help prints and asks to exit; parsing goes on to an error that
		// does not matter then.
		kong.Exit(func(status int) { exited = max(exited, status) }),
	)...)
	if err != nil {
		return fail(exitUsage, err)
	}
	showLimits(parser.Model.Node, false)
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if exited >= 0 {
		return exited
	}
	if err != nil {
		var syntax *kong.ParseError
		status := exitFailure // a setting is wrong
		if errors.As(err, &syntax) && len(syntax.Context.Path) <= 1 {
			status = exitUsage // there is no such command
		}
		return fail(status, err)
	}

	// The first SIGINT or SIGTERM asks for a graceful stop. A moment after it the
	// signals have their usual effect again, so that a second one ends the process
	// at once. Within the moment it is the same one twice: timeout(1) and others
	// signal a process and its group.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { time.AfterFunc(secondSignalGrace, stop) })

	command.BindTo(ctx, (*context.Context)(nil))
	if err := command.Run(p); err != nil {
		return fail(exitFailure, err)
	}
	return exitOK
}

type versionCmd struct{}

// Run prints the version.
func (*versionCmd) Run(p *process) error {
	fmt.Fprintf(p.stdout, "mynah %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return nil
}
