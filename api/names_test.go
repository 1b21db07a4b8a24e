package api_test

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"mynah/api"
)

// Guards against lists of ids alone, which cost every client a second call, and against
// names that lists tell and profiles do not.
func TestListsHaveNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	anna, bert, carol, dora := w.token("anna", ""), w.token("bert", ""), w.token("carol", ""), w.token("dora", "")
	for id, token := range map[string]string{"Anna": anna, "Bert": bert, "Carol": carol, "Dora": dora} {
		w.do(http.MethodPatch, "/v1/me", token, map[string]any{"name": id, "avatar": "https://img.example/" + id}).want(http.StatusOK)
	}
	w.do(http.MethodPatch, "/v1/me", bert, `{"settings":{"find_by_id":false}}`).want(http.StatusOK)
	w.do(http.MethodPatch, "/v1/me", dora, `{"settings":{"find_by_id":false}}`).want(http.StatusOK)
	w.do(http.MethodPatch, "/v1/me", carol, `{"settings":{"find_by_id":true}}`).want(http.StatusOK)
	group := w.do(http.MethodPost, "/v1/groups", anna, `{"name":"g","join":"approval"}`).want(http.StatusCreated).get("id")
	path := "/v1/groups/" + group

	// shown is the name and the picture of id in the list at path.
	shown := func(token, path, id string) [2]string {
		t.Helper()
		var list struct {
			Items []struct{ ID, Name, Avatar string }
		}
		w.do(http.MethodGet, path, token, nil).want(http.StatusOK).into(&list)
		for _, item := range list.Items {
			if item.ID == id {
				return [2]string{item.Name, item.Avatar}
			}
		}
		t.Fatalf("%s has no %s", path, id)
		return [2]string{}
	}
	full := func(name string) [2]string { return [2]string{name, "https://img.example/" + name} }
	expect := func(token, path, id string, want [2]string) {
		t.Helper()
		if got := shown(token, path, id); got != want {
			t.Errorf("%s: %s is %q, want %q", path, id, got, want)
		}
		// The list tells what the profile tells.
		if r := w.do(http.MethodGet, "/v1/people/"+id, token, nil).want(http.StatusOK); r.get("name") != want[0] || r.get("avatar") != want[1] {
			t.Errorf("%s: the profile of %s is %s, the list has %q", path, id, r.Body, want)
		}
	}

	w.do(http.MethodPost, "/v1/contacts/requests", anna, `{"id":"bert"}`).want(http.StatusCreated)
	w.do(http.MethodPost, "/v1/contacts/requests", anna, `{"id":"carol"}`).want(http.StatusCreated)
	w.do(http.MethodPost, "/v1/contacts/requests", anna, `{"id":"nobody"}`).want(http.StatusCreated)
	out := "/v1/contacts/requests?direction=outgoing"
	expect(anna, out, "carol", full("Carol"))
	expect(anna, out, "bert", [2]string{})   // who does not let strangers find them
	expect(anna, out, "nobody", [2]string{}) // nor does it tell that they are there
	w.do(http.MethodPost, "/v1/contacts/requests/anna/accept", bert, nil).want(http.StatusOK)
	expect(anna, "/v1/contacts", "bert", full("Bert"))
	if r := w.do(http.MethodGet, "/v1/contacts/bert", anna, nil).want(http.StatusOK); r.get("name") != "Bert" {
		t.Errorf("a contact: %s", r.Body)
	}
	w.do(http.MethodPut, "/v1/blocks/carol", anna, nil).want(http.StatusNoContent)
	expect(anna, "/v1/blocks", "carol", full("Carol"))

	w.do(http.MethodPost, path+"/join", carol, nil).want(http.StatusOK)
	expect(anna, path+"/requests", "carol", full("Carol"))
	w.do(http.MethodPost, path+"/requests/carol/approve", anna, nil).want(http.StatusNoContent)
	w.do(http.MethodPost, path+"/invitations", anna, `{"ids":["bert"]}`).want(http.StatusNoContent)
	expect(anna, path+"/invitations", "bert", full("Bert"))
	w.do(http.MethodPost, path+"/join", dora, nil).want(http.StatusOK)
	w.do(http.MethodPost, path+"/requests/dora/approve", anna, nil).want(http.StatusNoContent)
	expect(carol, path+"/members", "dora", full("Dora")) // of a common group
	expect(carol, path+"/members?staff=true", "anna", full("Anna"))
	if r := w.do(http.MethodGet, path+"/members/dora", carol, nil).want(http.StatusOK); r.get("name") != "Dora" {
		t.Errorf("a member: %s", r.Body)
	}
	w.do(http.MethodPut, path+"/bans/carol", anna, nil).want(http.StatusNoContent)
	expect(anna, path+"/bans", "carol", full("Carol"))

	// In a room, where anybody can be, only who lets strangers find them.
	room := w.do(http.MethodPost, "/v1/groups", anna, `{"name":"r","join":"open"}`).want(http.StatusCreated).get("id")
	w.do(http.MethodPost, "/v1/groups/"+room+"/join", carol, nil).want(http.StatusOK)
	w.do(http.MethodPost, "/v1/groups/"+room+"/join", dora, nil).want(http.StatusOK)
	expect(carol, "/v1/groups/"+room+"/members", "dora", [2]string{})
	expect(dora, "/v1/groups/"+room+"/members", "carol", full("Carol"))
	expect(dora, "/v1/groups/"+room+"/members", "dora", full("Dora"))
}

// counter counts queries.
type counter struct{ n atomic.Int64 }

func (c *counter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (c *counter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// However long a page is, it takes the same queries: names are read for all of it at once.
// That each goes by an index is tested with the others (package schema).
func TestNamesTakeNoQueryEach(t *testing.T) {
	t.Parallel()
	count := &counter{}
	w := newWorldTraced(t, count)
	anna := w.token("anna", "")
	group := w.do(http.MethodPost, "/v1/groups", anna, `{"name":"g"}`).want(http.StatusCreated).get("id")
	w.exec(`INSERT INTO accounts (id, name, find_by_id) SELECT 'p' || n, 'P ' || n, n % 2 = 0 FROM generate_series(1, 150) n`)
	w.exec(`INSERT INTO members (grp, account) SELECT $1, 'p' || n FROM generate_series(1, 150) n`, group)
	w.exec(`INSERT INTO contacts (owner, peer, state) SELECT 'anna', 'p' || n, 'contact' FROM generate_series(1, 150) n`)
	for _, path := range []string{"/v1/contacts", "/v1/groups/" + group + "/members"} {
		queries := func(limit int) int64 {
			before := count.n.Load()
			var list struct{ Items []struct{ Name string } }
			w.do(http.MethodGet, fmt.Sprintf("%s?limit=%d", path, limit), anna, nil).want(http.StatusOK).into(&list)
			if len(list.Items) != limit || list.Items[limit-1].Name == "" {
				t.Errorf("%s: %d items, the last is called %q", path, len(list.Items), list.Items[limit-1].Name)
			}
			return count.n.Load() - before
		}
		queries(150) // what is known of the caller is kept for a moment
		if few, many := queries(10), queries(150); many > few {
			t.Errorf("%s: %d queries for 10 items and %d for 150", path, few, many)
		}
	}
}

// newWorldTraced starts an API whose queries are traced.
func newWorldTraced(tb testing.TB, tracer pgx.QueryTracer) *world {
	tb.Helper()
	return newWorld(tb, func(c *api.Config) {
		config := c.DB.Config()
		config.ConnConfig.Tracer = tracer
		pool, err := pgxpool.NewWithConfig(context.Background(), config)
		must(tb, err)
		tb.Cleanup(pool.Close)
		c.DB = pool
	})
}
