package chat

import (
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// appendQuoted appends text as a JSON string (RFC 8259 section 7). Only what must
// be escaped is; bytes that are no UTF-8 become U+FFFD.
func appendQuoted(dst, text []byte) []byte {
	dst = append(dst, '"')
	if utf8.Valid(text) {
		dst = appendEscaped(dst, text)
	} else {
		for len(text) > 0 {
			_, size := utf8.DecodeRune(text)
			if text[0] >= utf8.RuneSelf && size == 1 {
				dst = append(dst, "\ufffd"...)
			} else {
				dst = appendEscaped(dst, text[:size])
			}
			text = text[size:]
		}
	}
	return append(dst, '"')
}

// appendEscaped appends UTF-8 text as it stands between the quotes of a JSON
// string.
func appendEscaped(dst, text []byte) []byte {
	for {
		n := plain(text)
		dst = append(dst, text[:n]...)
		if n == len(text) {
			return dst
		}
		switch c := text[n]; c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		text = text[n+1:]
	}
}

// escapedLen is the number of bytes that appendEscaped appends.
func escapedLen(text []byte) int {
	size := len(text)
	for {
		n := plain(text)
		if n == len(text) {
			return size
		}
		switch text[n] {
		case '"', '\\', '\b', '\f', '\n', '\r', '\t':
			size++
		default:
			size += 5
		}
		text = text[n+1:]
	}
}

// unescape appends what the inside of a JSON string stands for. The scanner has
// been over it; a surrogate without its other half becomes U+FFFD.
func unescape(dst, inside []byte) []byte {
	for i := 0; i < len(inside); {
		c := inside[i]
		if c != '\\' {
			dst = append(dst, c)
			i++
			continue
		}
		c = inside[i+1]
		i += 2
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r, _ := hex4(inside[i:])
			i += 4
			if isHigh(r) && i+6 <= len(inside) && inside[i] == '\\' && inside[i+1] == 'u' {
				if low, _ := hex4(inside[i+2:]); isLow(low) {
					r = 0x10000 + (r-0xd800)<<10 + (low - 0xdc00)
					i += 6
				}
			}
			// AppendRune makes U+FFFD of a surrogate that is left.
			dst = utf8.AppendRune(dst, r)
			continue
		}
		dst = append(dst, c)
	}
	return dst
}

// appendCompact appends well-formed JSON without its insignificant white space.
func appendCompact(dst, json []byte) []byte {
	for i := 0; i < len(json); {
		// A token or a run of them up to the next space or string.
		from := i
		for i < len(json) && json[i] > ' ' && json[i] != '"' {
			i++
		}
		if i < len(json) && json[i] == '"' {
			i++
			for json[i] != '"' {
				if i += plain(json[i:]); json[i] == '\\' {
					i += 2
				}
			}
			i++
		}
		dst = append(dst, json[from:i]...)
		for i < len(json) && json[i] <= ' ' {
			i++
		}
	}
	return dst
}
