package e2e_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// docker-compose.yml, read without Docker: every service is watched, stops in time,
// keeps its data, and no secret has a default. Whether the images build is for a
// machine with an engine to say.
func TestCompose(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	type service struct {
		Command     []string
		User        string
		Environment map[string]string
		Healthcheck struct {
			Test    []string
			Disable bool
		}
		Volumes   []string
		DependsOn map[string]struct{ Condition string } `yaml:"depends_on"`
	}
	var compose struct {
		Services map[string]service
		Volumes  map[string]any
	}
	if err := yaml.Unmarshal(raw, &compose); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postgres", "migrate", "broker", "archiver", "api"} {
		s, ok := compose.Services[name]
		if !ok {
			t.Errorf("there is no service %s", name)
			continue
		}
		if len(s.Healthcheck.Test) == 0 && !s.Healthcheck.Disable {
			t.Errorf("%s has no health check", name)
		}
		for other, d := range s.DependsOn {
			if _, ok := compose.Services[other]; !ok || d.Condition == "" {
				t.Errorf("%s depends on %s: %+v", name, other, d)
			}
		}
		for _, v := range s.Volumes {
			volume, _, _ := strings.Cut(v, ":")
			if _, ok := compose.Volumes[volume]; !ok {
				t.Errorf("%s uses the volume %s, which is not declared", name, volume)
			}
		}
		// The settings are ours, and the commands exist.
		for key := range s.Environment {
			if !strings.HasPrefix(key, "MYNAH_") {
				continue
			}
			flag := "--" + strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(key, "MYNAH_")), "_", "-")
			if _, help, _ := execute(t, s.Command[0], "--help"); !strings.Contains(help, flag+"=") {
				t.Errorf("%s sets %s, but mynah %s has no flag %s", name, key, s.Command[0], flag)
			}
		}
	}
	for _, name := range []string{"broker", "postgres"} {
		if len(compose.Services[name].Volumes) == 0 {
			t.Errorf("%s has no volume: its data would go with the container", name)
		}
	}
	// ${NAME:?what to do} and never ${NAME:-default} for what is secret.
	for _, use := range regexp.MustCompile(`\$\{(\w*(?:SECRET|PASSWORD)\w*)([^}]*)\}`).FindAllStringSubmatch(string(raw), -1) {
		if !strings.HasPrefix(use[2], ":?") {
			t.Errorf("%s has a default or may be empty: %s", use[1], use[0])
		}
	}
	dockerfile, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CGO_ENABLED=0", "\nUSER 65532", "\nHEALTHCHECK ", "\nFROM scratch"} {
		if !strings.Contains(string(dockerfile), want) {
			t.Errorf("the Dockerfile has no %q", want)
		}
	}
}
