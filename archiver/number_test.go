package archiver_test

import (
	"sort"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"mynah/chat"
	"mynah/internal/pgtest"
)

// Numbers count against the limit of a rendered message by what PostgreSQL's jsonb makes
// of them: it knows no exponents, and 54 KB of 1e308 would be 2.8 MB of text in the
// archive.
func TestNumbersCountAsInJSONB(t *testing.T) {
	t.Parallel()
	db, err := pgx.Connect(t.Context(), pgtest.New(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close(t.Context()) }()
	// least is the lowest limit under which a message with the number is accepted.
	least := func(number string) int {
		return sort.Search(40_000, func(limit int) bool {
			_, err := chat.Limits{Rendered: max(limit, 1)}.Parse([]byte(`{"body":`+number+`}`), false)
			return err == nil
		})
	}
	one := least("1")
	for _, number := range []string{
		"0", "21.5", "1e0", "1e1", "1E+2", "1e-1", "1.5e3", "1.50e1", "12.345e1", "12.345e2", "12.345e3", "12.345e9", "0.001e2", "0.00120e2",
		"0.00120e9", "10e-1", "100e-5", "0e5", "0e-5", "0.0e-3", "0.000e2", "0.000e9", "1e308", "1.7976931348623157e308", "17e307",
		"1e-300", "1.25e-300", "0e-16383", "0e16383", "123456789e-4", "123456789e-9", "123456789e-12",
		strings.Repeat("9", 308), "0." + strings.Repeat("0", 299) + "1", "-1e5", "-1e-5",
	} {
		var text string
		if err := db.QueryRow(t.Context(), "SELECT $1::text::jsonb::text", number).Scan(&text); err != nil {
			t.Fatal(err)
		}
		// A number that becomes shorter counts as it is written.
		if want, got := max(len(text), len(number)), least(number)-one+1; got != want {
			t.Errorf("%.30s counts as %d bytes, in jsonb it is %d, written %d", number, got, len(text), len(number))
		}
	}
}
