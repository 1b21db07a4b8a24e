package msglog_test

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"mynah/broker/msglog"
	"mynah/broker/state"
	"mynah/chat"
)

// fill gives every field of a struct a value that is not zero.
func fill(tb testing.TB, v reflect.Value) {
	tb.Helper()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() { //nolint:exhaustive // the kinds that there are
		case reflect.Struct:
			fill(tb, f)
		case reflect.String:
			f.SetString(v.Type().Field(i).Name + "\x00é")
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Int64:
			f.SetInt(-1_700_000_000_000 - int64(i))
		case reflect.Uint8:
			f.SetUint(2)
		case reflect.Uint16, reflect.Uint64:
			f.SetUint(uint64(40_000 + i)) //nolint:gosec // small
		case reflect.Slice:
			f.SetBytes([]byte(v.Type().Field(i).Name))
		default:
			tb.Fatalf("a field of kind %v", f.Kind())
		}
	}
}

// An entry arrives as it was proposed: every field of a record, so also those to come, but
// for what the log decides.
func TestEntryCodec(t *testing.T) {
	t.Parallel()
	var full msglog.Record
	fill(t, reflect.ValueOf(&full).Elem())
	entries := []*msglog.Entry{
		{},
		{Origin: "broker-7", Number: 1 << 60, Time: 1_795_000_000_000, Full: true, Trim: 1 << 50},
		{Records: []*msglog.Record{{}, &full, {Message: chat.Message{From: "a", Tail: []byte("}")}}}},
		{Time: -5, State: []state.Op{{Key: "a\x00", Value: []byte("b")}, {Delete: true, Prefix: true}, {Key: "k", Delete: true}}},
	}
	for i, e := range entries {
		got, err := msglog.DecodeEntry(msglog.AppendEntry(nil, e))
		if err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		want := *e
		want.Records = nil
		for _, r := range e.Records {
			r := *r
			r.Seq, r.TS, r.Prev, r.PrevSender = 0, 0, 0, 0
			want.Records = append(want.Records, &r)
		}
		if d := cmp.Diff(&want, got, cmp.Comparer(bytes.Equal)); d != "" {
			t.Errorf("entry %d (-want +got):\n%s", i, d)
		}
	}
}

// An entry that was damaged on its way, or that a newer release has made, is refused.
func TestEntryRefused(t *testing.T) {
	t.Parallel()
	b := msglog.AppendEntry(nil, &msglog.Entry{Origin: "a", Records: []*msglog.Record{{Client: "phone"}}})
	for i := range b {
		if _, err := msglog.DecodeEntry(flip(b, i)); err == nil {
			t.Errorf("accepted with a flipped bit in byte %d", i)
		}
		if _, err := msglog.DecodeEntry(b[:i]); err == nil {
			t.Errorf("accepted with %d of %d bytes", i, len(b))
		}
	}
	b[0]++
	if _, err := msglog.DecodeEntry(b); !errors.Is(err, msglog.ErrEntryVersion) {
		t.Errorf("an entry of a newer release: %v", err)
	}
}
