package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"

	"mynah/chat"
	"mynah/schema"
)

// Page is the input of every list. Lists are read by keyset: next of one answer
// is the cursor of the following request, whatever was added or removed between.
type Page struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"Most items in the answer"`
	Cursor string `query:"cursor" maxLength:"512" pattern:"^[A-Za-z0-9_-]*$" doc:"next of the answer before; leave it out to begin"`
}

// List is the output of every list.
type List[T any] struct {
	Items []T    `json:"items" nullable:"false"`
	Next  string `json:"next,omitempty" doc:"Cursor of the next page; absent on the last"`
}

// after reads the cursor into the key of the last item, a struct or a scalar of
// the list's own. It reports false at the beginning of the list, where key stays
// as it is.
func (p *Page) after(key any) (bool, error) {
	if p.Cursor == "" {
		return false, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(p.Cursor)
	if err == nil && bytes.Contains(text, []byte(`\u0000`)) {
		err = errors.New("U+0000 in a key") // PostgreSQL's text cannot hold it
	}
	if err == nil {
		err = json.Unmarshal(text, key)
	}
	if err != nil {
		return false, chat.Refuse(chat.CodeInvalid, "The cursor is not one of this list. Begin without it.")
	}
	return true, nil
}

// listOf makes a page out of up to limit+1 rows: the query asks for one row more
// than the page holds, and key gives the key of an item for the next cursor.
func listOf[T any](rows []T, limit int, key func(T) any) List[T] {
	list := List[T]{Items: rows}
	if len(rows) > limit {
		list.Items = rows[:limit]
		text, err := json.Marshal(key(rows[limit-1]))
		if err != nil {
			panic(err) // keys are strings, numbers and times
		}
		list.Next = base64.RawURLEncoding.EncodeToString(text)
	}
	if list.Items == nil {
		list.Items = []T{}
	}
	return list
}

// afterTime reads the cursor of a list ordered by time, nil at its beginning.
func (p *Page) afterTime() (*schema.TimeKey, error) {
	var key schema.TimeKey
	if ok, err := p.after(&key); err != nil || !ok {
		return nil, err
	}
	return &key, nil
}

// afterID reads the cursor of a list ordered by id, "" at its beginning.
func (p *Page) afterID() (id string, err error) {
	_, err = p.after(&id)
	return id, err
}
