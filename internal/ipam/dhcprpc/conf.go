package dhcprpc

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/seine-net/seine/api"
)

// Conf is what a network's configuration and CNI_ARGS ask of DHCP. It is kept with a lease.
type Conf struct {
	// Network is the network's name.
	Network string `json:"network"`
	// V4 and V6 say which families a lease is wanted of.
	V4 bool `json:"v4,omitempty"`
	V6 bool `json:"v6,omitempty"`
	// Provide are options of DHCPv4 that are sent to the server, the last of each code.
	Provide []Option `json:"provide,omitempty"`
	// Request are the codes of the options that DHCPv4 asks for (RFC 2132 section 9.8).
	Request []byte `json:"request,omitempty"`
	// Priority is the metric of the routes; 0 leaves it to whoever makes them.
	Priority int `json:"priority,omitempty"`
	// Socket is where the daemon listens.
	Socket string `json:"-"`
}

// Option is an option of DHCPv4 as it is on the wire.
type Option struct {
	Code  byte   `json:"code"`
	Value []byte `json:"value"`
}

// optionNames are the options by their names in dhcp-options(5). The reference knows the first six.
var optionNames = map[string]byte{
	"dhcp-client-identifier":  61,
	"subnet-mask":             1,
	"routers":                 3,
	"host-name":               12,
	"user-class":              77,
	"vendor-class-identifier": 60,

	"domain-name-servers":             6,
	"domain-name":                     15,
	"domain-search":                   119,
	"interface-mtu":                   26,
	"ntp-servers":                     42,
	"static-routes":                   33,
	"rfc3442-classless-static-routes": 121,
	"classless-static-routes":         121,
	"dhcp-requested-address":          50,
	"dhcp-lease-time":                 51,
}

// defaultRequest is what is asked for unless request has skipDefault: what the reference asks for, and what its result
// lacks, the resolver's settings.
var defaultRequest = []byte{3, 1, 6, 15, 119}

// notProvided are options that the protocol fills in by itself.
var notProvided = map[byte]string{0: "is padding", 52: "is filled in by the protocol", 53: "is filled in by the protocol",
	54: "is filled in by the protocol", 55: "is filled in from request", 57: "is filled in by the protocol", 255: "is the end of options"}

// maxValue is what the length of an option on the wire can say.
const maxValue = 255

// ParseConf reads a plugin's standard input and CNI_ARGS and validates what they ask of DHCP.
func ParseConf(stdin []byte, cniArgs string) (*Conf, error) {
	var in struct {
		Name string `json:"name"`
		IPAM struct {
			DaemonSocketPath string `json:"daemonSocketPath"`
			Provide          []struct {
				Option  string `json:"option"`
				Value   string `json:"value"`
				FromArg string `json:"fromArg"`
			} `json:"provide"`
			Request []struct {
				SkipDefault bool   `json:"skipDefault"`
				Option      string `json:"option"`
			} `json:"request"`
			Priority int      `json:"priority"`
			Families []string `json:"families"`
		} `json:"ipam"`
	}
	err := json.Unmarshal(stdin, &in)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c := &Conf{Network: in.Name, Priority: in.IPAM.Priority, Socket: in.IPAM.DaemonSocketPath}
	if c.Socket == "" {
		c.Socket = DefaultSocket
	}
	if c.Priority < 0 || c.Priority > 1<<32-1 {
		return nil, api.FieldError("", "ipam.priority", c.Priority, "is no metric", "0 to 4294967295")
	}
	if err := c.families(in.IPAM.Families); err != nil {
		return nil, err
	}
	args := map[string]string{}
	for pair := range strings.SplitSeq(cniArgs, ";") {
		if k, v, ok := strings.Cut(pair, "="); ok {
			args[k] = v
		}
	}
	for i, p := range in.IPAM.Provide {
		field := fmt.Sprintf("ipam.provide[%d]", i)
		value, fromArg := args[p.FromArg]
		if !fromArg {
			value = p.Value
		}
		if err := c.provide(field, p.Option, value); err != nil {
			return nil, err
		}
	}
	skip := false
	for i, r := range in.IPAM.Request {
		skip = skip || r.SkipDefault
		if r.Option == "" {
			continue
		}
		code, err := optionCode(fmt.Sprintf("ipam.request[%d].option", i), r.Option)
		if err != nil {
			return nil, err
		}
		c.request(code)
	}
	if !skip {
		for _, code := range defaultRequest {
			c.request(code)
		}
	}
	return c, nil
}

func (c *Conf) families(list []string) error {
	if list == nil {
		c.V4 = true // as the reference
		return nil
	}
	for i, f := range list {
		switch f {
		case "4":
			c.V4 = true
		case "6":
			c.V6 = true
		default:
			return api.FieldError("", fmt.Sprintf("ipam.families[%d]", i), f, "is no family", `"4" or "6"`)
		}
	}
	if len(list) == 0 {
		return api.FieldError("", "ipam.families", "[]", "is empty", `"4", "6" or both`)
	}
	return nil
}

func (c *Conf) request(code byte) {
	if !slices.Contains(c.Request, code) {
		c.Request = append(c.Request, code)
	}
}

func optionCode(field, name string) (byte, error) {
	if code, ok := optionNames[name]; ok {
		return code, nil
	}
	n, err := strconv.ParseUint(name, 10, 8)
	if err != nil || n == 0 || n == 255 {
		return 0, api.FieldError("", field, name, "is no option", "1 to 254, or a name of dhcp-options(5) such as host-name")
	}
	return byte(n), nil
}

// provide adds an option that is sent. An empty value sends nothing, as one from an argument that is not given.
func (c *Conf) provide(field, name, value string) error {
	code, err := optionCode(field+".option", name)
	if err != nil {
		return err
	}
	if why := notProvided[code]; why != "" {
		return api.FieldError("", field+".option", name, why, "another option")
	}
	if value == "" {
		return nil
	}
	raw := []byte(value)
	switch code {
	case 50:
		a, err := netip.ParseAddr(value)
		if err != nil || !a.Is4() {
			return api.FieldError("", field+".value", value, "is no address of IPv4", "an address such as 10.1.0.2")
		}
		raw = a.AsSlice()
	case 51:
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return api.FieldError("", field+".value", value, "is no lease time", "seconds")
		}
		raw = binary.BigEndian.AppendUint32(nil, uint32(n))
	}
	if len(raw) > maxValue {
		return api.FieldError("", field+".value", fmt.Sprintf("%.20s…", value), fmt.Sprintf("has %d bytes", len(raw)), fmt.Sprintf("at most %d", maxValue))
	}
	c.Provide = slices.DeleteFunc(c.Provide, func(o Option) bool { return o.Code == code })
	c.Provide = append(c.Provide, Option{code, raw})
	return nil
}
