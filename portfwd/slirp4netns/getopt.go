package slirp4netns

import (
	"fmt"
	"io"
	"strings"
)

// argument says whether an option takes one.
type argument bool

const (
	none     argument = false
	required argument = true
)

// option is one of those a scanner knows.
type option struct {
	name  string
	short byte // 0: has none
	takes argument
	set   func(c *command, value string) error
}

// scanner reads a command line as getopt_long(3) of the GNU C library does: options
// may follow operands, short ones may be bundled, long ones may be shortened to what
// is still unique, and "--" ends them.
type scanner struct {
	argv0    string
	options  []option
	rest     []string // not read yet
	bundle   string   // short options of the current word, not read yet
	operands []string // complete after io.EOF
}

// next returns the next option and its argument, and io.EOF after the last. Any other
// error has the text that glibc prints.
func (s *scanner) next() (*option, string, error) {
	if s.bundle != "" {
		return s.short()
	}
	for len(s.rest) > 0 {
		word := s.take()
		switch {
		case word == "--":
			s.operands = append(s.operands, s.rest...)
			s.rest = nil
		case strings.HasPrefix(word, "--"):
			return s.long(word[2:])
		case len(word) > 1 && word[0] == '-':
			s.bundle = word[1:]
			return s.short()
		default:
			s.operands = append(s.operands, word)
		}
	}
	return nil, "", io.EOF
}

func (s *scanner) take() string {
	word := s.rest[0]
	s.rest = s.rest[1:]
	return word
}

func (s *scanner) short() (*option, string, error) {
	letter := s.bundle[0]
	s.bundle = s.bundle[1:]
	for i := range s.options {
		o := &s.options[i]
		if o.short == 0 || o.short != letter {
			continue
		}
		if o.takes == none {
			return o, "", nil
		}
		value := s.bundle
		s.bundle = ""
		if value == "" {
			if len(s.rest) == 0 {
				return nil, "", s.complain("option requires an argument -- '%c'", letter)
			}
			value = s.take()
		}
		return o, value, nil
	}
	return nil, "", s.complain("invalid option -- '%s'", string([]byte{letter}))
}

func (s *scanner) long(word string) (*option, string, error) {
	name, value, assigned := strings.Cut(word, "=")
	var found []*option
	for i := range s.options {
		o := &s.options[i]
		if o.name == name { // however many others begin with it
			found = []*option{o}
			break
		}
		if strings.HasPrefix(o.name, name) {
			found = append(found, o)
		}
	}
	if len(found) == 0 {
		return nil, "", s.complain("unrecognized option '--%s'", word)
	}
	if len(found) > 1 {
		var possibilities strings.Builder
		for _, o := range found {
			fmt.Fprintf(&possibilities, " '--%s'", o.name)
		}
		return nil, "", s.complain("option '--%s' is ambiguous; possibilities:%s", word, &possibilities)
	}
	o := found[0]
	switch {
	case assigned && o.takes == none:
		return nil, "", s.complain("option '--%s' doesn't allow an argument", o.name)
	case assigned || o.takes == none:
		return o, value, nil
	case len(s.rest) == 0:
		return nil, "", s.complain("option '--%s' requires an argument", o.name)
	}
	return o, s.take(), nil
}

func (s *scanner) complain(format string, args ...any) error {
	return fmt.Errorf("%s: "+format, append([]any{s.argv0}, args...)...)
}
