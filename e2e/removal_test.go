package e2e_test

import (
	"net/http"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// Guards against messages that reach somebody after the answer has said that they are
// removed, and against those that a new member misses: the answer comes when the broker
// knows. In one process and in two.
func TestRemovedAtTheAnswer(t *testing.T) {
	t.Parallel()
	for name, nodes := range map[string]func(t *testing.T) (broker, api *node){
		"serve": func(t *testing.T) (*node, *node) { t.Helper(); n := shared(t); return n, n },
		"broker and api": func(t *testing.T) (*node, *node) {
			t.Helper()
			pg := mustOwnPostgres(t)
			broker := start(t, "broker", "--data-dir", t.TempDir(), "--jwt-secret", secret, "--database-url", pg.url,
				"--mqtt-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
			api := start(t, "api", "--database-url", pg.url, "--broker-url", "mqtt://"+broker.mqtt, "--jwt-secret", secret,
				"--http-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0")
			return broker, api
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker, api := nodes(t)
			testRemovals(t, broker, api)
		})
	}
}

func testRemovals(t *testing.T, broker, api *node) {
	t.Helper()
	enter := func(name string, more ...jwt.MapClaims) *visitor {
		v := &visitor{tb: t, node: api, id: unique(name)}
		v.token = token(t, v.id, more...)
		v.mqtt = dial(t, broker, "c", v.token)
		v.mqtt.sub(t, "user/"+v.id, 1)
		v.mqtt.sub(t, "group/+", 1)
		return v
	}
	owner, member := enter("owner"), enter("member")
	service := enter("service", jwt.MapClaims{"role": "service"}) // may always speak
	create := func() string {
		id, _ := owner.call(http.MethodPost, "/v1/groups", object{"name": "room", "join": "open"})["id"].(string)
		return "/v1/groups/" + id
	}
	group := create()
	ways := []struct {
		name   string
		remove func(group string)
		again  bool // whether the group is still there afterwards
	}{
		{"kick", func(g string) { owner.call(http.MethodDelete, g+"/members/"+member.id, nil) }, true},
		{"leave", func(g string) { member.call(http.MethodPost, g+"/leave", nil) }, true},
		{"ban", func(g string) { owner.call(http.MethodPut, g+"/bans/"+member.id, object{}) }, true},
		{"dissolve", func(g string) { owner.call(http.MethodDelete, g, nil) }, false},
	}
	const rounds = 6
	for range rounds {
		for _, way := range ways {
			member.call(http.MethodPost, group+"/join", object{})
			topic := "group/" + group[len("/v1/groups/"):]
			in, out, mark := unique("in"), unique("out"), unique("mark")
			service.mqtt.pub(t, topic, 1, in)
			member.mqtt.waitText(t, in)
			way.remove(group)
			service.mqtt.pub(t, topic, 1, out)
			// What comes later in the log comes later.
			service.mqtt.pub(t, "user/"+member.id, 1, mark)
			member.mqtt.waitText(t, mark)
			if n := member.mqtt.count(out); n != 0 {
				t.Errorf("%s: what was published after the answer has come", way.name)
			}
			switch {
			case way.name == "ban":
				owner.call(http.MethodDelete, group+"/bans/"+member.id, nil)
			case !way.again:
				group = create()
			}
		}
	}
}
