// Package builtin is the list of what this program has: one line per driver, fabric and addon, name → constructor.
package builtin

import (
	"log/slog"

	"github.com/seine-net/seine/internal/addon"
	"github.com/seine-net/seine/internal/addon/portmap"
	"github.com/seine-net/seine/internal/driver"
	"github.com/seine-net/seine/internal/driver/bridge"
	"github.com/seine-net/seine/internal/driver/cni"
	"github.com/seine-net/seine/internal/driver/docker"
	"github.com/seine-net/seine/internal/driver/dummy"
	"github.com/seine-net/seine/internal/driver/host"
	"github.com/seine-net/seine/internal/driver/ipvlan"
	"github.com/seine-net/seine/internal/driver/macvlan"
	"github.com/seine-net/seine/internal/driver/null"
	"github.com/seine-net/seine/internal/driver/ptp"
	"github.com/seine-net/seine/internal/driver/vlan"
	"github.com/seine-net/seine/internal/fabric"
	"github.com/seine-net/seine/internal/fabric/hostgw"
	"github.com/seine-net/seine/internal/fabric/udp"
	"github.com/seine-net/seine/internal/fabric/vxlan"
	"github.com/seine-net/seine/internal/fabric/wireguard"
	"github.com/seine-net/seine/internal/kernel"
)

// Drivers gives every driver under the name that a network asks for it by.
func Drivers() map[string]driver.Driver {
	return map[string]driver.Driver{
		"bridge":  bridge.New(),
		"cni":     cni.New(),
		"docker":  docker.New(docker.NewPlugins()),
		"dummy":   dummy.New(),
		"host":    host.New(),
		"ipvlan":  ipvlan.New(),
		"macvlan": macvlan.New(),
		"null":    null.New(),
		"ptp":     ptp.New(),
		"vlan":    vlan.New(),
	}
}

// IPAMs gives every IPAM that takes the place of the daemon's own, under the name that a network asks for it by.
func IPAMs() map[string]driver.Attacher {
	return map[string]driver.Attacher{
		"docker": docker.NewIPAM(docker.NewPlugins()),
	}
}

// Fabrics gives every fabric under the name that a network asks for it by. key is the node's own for WireGuard.
func Fabrics(key kernel.Secret, log *slog.Logger) (map[string]fabric.Fabric, error) {
	public, err := key.Public()
	if err != nil {
		return nil, err
	}
	return map[string]fabric.Fabric{
		udp.Name:       udp.NewCarrier(public[:], 0, log),
		hostgw.Name:    hostgw.New(),
		vxlan.Name:     vxlan.New(0),
		wireguard.Name: wireguard.New(key, 0),
	}, nil
}

// Addons gives every addon; each decides by the endpoint whether it has something to do.
func Addons() map[string]addon.Addon {
	return map[string]addon.Addon{
		"portmap": portmap.New(),
	}
}
