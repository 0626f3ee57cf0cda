package kernel_test

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/seine-net/seine/internal/kernel"
)

func rulePrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestParseRule(t *testing.T) {
	for rule, want := range map[string][]kernel.Stmt{
		`iifname "sn-*" accept`: {&kernel.Match{Fields: []kernel.Field{kernel.FieldIifname}, Name: "sn-", Wildcard: true},
			&kernel.Verdict{Kind: "accept"}},
		`ip saddr 10.1.0.0/16 tcp dport != 80-90 drop`: {
			&kernel.Match{Fields: []kernel.Field{kernel.FieldIPSaddr}, Prefix: rulePrefix("10.1.0.0/16")},
			&kernel.Match{Fields: []kernel.Field{kernel.FieldTCPDport}, Not: true, Lo: 80, Hi: 90},
			&kernel.Verdict{Kind: "drop"}},
		`ip6 daddr fd00::1`: {&kernel.Match{Fields: []kernel.Field{kernel.FieldIP6Daddr}, Prefix: rulePrefix("fd00::1/128")}},
		`ct state established, related accept`: {&kernel.Match{Fields: []kernel.Field{kernel.FieldCtState}, Lo: 6, Hi: 6},
			&kernel.Verdict{Kind: "accept"}},
		`meta mark and 0xff00 == 0x100`: {&kernel.Match{Fields: []kernel.Field{kernel.FieldMark}, Mask: 0xff00, Lo: 0x100, Hi: 0x100}},
		`meta iifgroup . meta oifgroup != @same`: {&kernel.Match{Fields: []kernel.Field{kernel.FieldIifgroup, kernel.FieldOifgroup},
			Not: true, Set: "same"}},
		`iifname . ip saddr vmap @who`: {&kernel.Vmap{Fields: []kernel.Field{kernel.FieldIifname, kernel.FieldIPSaddr}, Map: "who"}},
		`dnat ip6 to meta l4proto . th dport map @port6`: {&kernel.NAT{Kind: "dnat", V6: true,
			Fields: []kernel.Field{kernel.FieldL4proto, kernel.FieldThDport}, Map: "port6"}},
		`tcp dport 1 dnat ip6 to [fd00::1]:80`: {&kernel.Match{Fields: []kernel.Field{kernel.FieldTCPDport}, Lo: 1, Hi: 1},
			&kernel.NAT{Kind: "dnat", V6: true, Addr: rulePrefix("fd00::1/128").Addr(), Port: 80}},
		`masquerade random`:               {&kernel.NAT{Kind: "masquerade", Random: true}},
		`redirect to :53`:                 {&kernel.NAT{Kind: "redirect", Port: 53}},
		`ct mark set meta mark`:           {&kernel.SetMark{Ct: true, Copy: true}},
		`meta mark set 0x10`:              {&kernel.SetMark{Value: 16}},
		`meta mark set meta mark or 0x10`: {&kernel.SetMark{Value: 16, Keep: 0xffffffef}},
		`ct mark set ct mark and 0xf0`:    {&kernel.SetMark{Ct: true, Keep: 0xf0}},
		`counter jump publish`:            {kernel.Simple("counter"), &kernel.Verdict{Kind: "jump", Chain: "publish"}},
		`reject with tcp reset`:           {&kernel.Verdict{Kind: "reject", Reset: true}},
		"notrack\tgoto  a-b.c/d":          {kernel.Simple("notrack"), &kernel.Verdict{Kind: "goto", Chain: "a-b.c/d"}},
	} {
		got, err := kernel.ParseRule(rule)
		if err != nil {
			t.Error(err)
		} else if !reflect.DeepEqual(got.Stmts, want) {
			t.Errorf("rule %q: got %+v, want %+v", rule, got.Stmts, want)
		}
	}
}

func TestParseRuleErrors(t *testing.T) {
	for _, c := range []struct{ rule, where, want string }{
		{``, "at its end", "a statement"},
		{`tcp dport`, "at its end", "a port"},
		{`frob`, `column 1: "frob"`, "a statement"},
		{`tcp dport 80 frob`, `column 14: "frob"`, "a statement"},
		{`tcp dport 70000`, `column 11: "70000"`, "at most 65535"},
		{`tcp dport 90-80`, `column 11: "90-80"`, "a port"},
		{`tcp dport { 80 }`, `column 11: "{"`, "a port"},
		{`iifname eth0`, `column 9: "eth0"`, "in quotes"},
		{`iifname ""`, `column 9: ""`, "interface name"},
		{`iifname "*"`, `column 9: "*"`, "interface name"},
		{`iifname "a*b"`, `column 9: "a*b"`, "interface name"},
		{`iifname "abcdefghijklmnop"`, `column 9`, "15 bytes"},
		{`iifname "abc`, `column 9: "abc`, "not closed"},
		{`ip saddr fd00::1`, `column 10: "fd00::1"`, "IPv4"},
		{`ip6 saddr 10.0.0.1`, `column 11: "10.0.0.1"`, "IPv6"},
		{`ip saddr 10.0.0.1/8`, `column 10`, "without host bits"},
		{`ip saddr 0.0.0.0/0`, `column 10`, "IPv4"},
		{`ip saddr @`, `column 10: "@"`, "name of a set"},
		{`ip saddr . tcp dport 80`, `column 22: "80"`, "@ and the name"},
		{`ip saddr . ct state @x`, `column 21: "@x"`, `no "ct state"`},
		{`ct state @x`, `column 10: "@x"`, "no look-up"},
		{`ct state wrong`, `column 10: "wrong"`, "one of established, invalid"},
		{`ct state new,`, `at its end`, "one of"},
		{`ct state != new,invalid`, `column 17: "invalid"`, "no !="},
		{`ct status != dnat`, `column 14: "dnat"`, "no !="},
		{`ct state == new`, `column 10: "=="`, "no =="},
		{`meta mark and 0 == 1`, `column 15: "0"`, "other than 0"},
		{`meta mark and 1 2`, `column 17: "2"`, `"=="`},
		{`meta mark set x`, `column 15: "x"`, "a number"},
		{`meta mark set meta mark`, `at its end`, `"and" or "or"`},
		{`meta mark set meta mark or x`, `column 28: "x"`, "a number"},
		{`dnat to 10.0.0.1`, `column 6: "to"`, `"ip"`},
		{`dnat ip to fd00::1`, `column 12: "fd00::1"`, "ADDR"},
		{`dnat ip6 to fd00::1%eth0`, `column 13`, "ADDR"},
		{`dnat ip to 10.0.0.1:0`, `column 12`, "ADDR"},
		{`dnat ip to th dport @x`, `column 21: "@x"`, `"map"`},
		{`redirect to 80`, `column 13: "80"`, "a port"},
		{`jump`, "at its end", "a chain"},
		{`jump 1`, `column 6: "1"`, "a chain"},
		{`accept counter`, `column 8: "counter"`, "the end"},
		{`masquerade accept`, `column 12: "accept"`, "the end"},
		{`reject with icmp`, `column 13: "icmp"`, `"tcp"`},
		{`meta l4proto 256`, `column 14: "256"`, "at most 255"},
		{`fib daddr type host`, `column 16: "host"`, "local"},
	} {
		_, err := kernel.ParseRule(c.rule)
		if err == nil || !strings.Contains(err.Error(), c.where) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("rule %q: got %v, want %q and %q", c.rule, err, c.where, c.want)
		}
	}
}

// FuzzParseRule: no rule, however odd, makes the parser panic, and what it takes has statements.
func FuzzParseRule(f *testing.F) {
	for _, s := range []string{`iifname "sn-*" accept`, `ct state a,b`, `dnat ip6 to [::1]:1`, `meta mark and 1 == 1`, `ip saddr . th dport vmap @x`, `"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, rule string) {
		p, err := kernel.ParseRule(rule)
		if err == nil && len(p.Stmts) == 0 {
			t.Errorf("rule %q has no statement", rule)
		}
	})
}
