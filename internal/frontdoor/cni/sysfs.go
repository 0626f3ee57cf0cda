package cni

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// sysfs looks devices up in a sysfs (sysfs(5)) below a folder.
type sysfs string

// userDrivers are the drivers that give a PCI device to a program (DPDK, a virtual machine): it has no interface.
var userDrivers = []string{"vfio-pci", "uio_pci_generic", "igb_uio"}

// The folders of the busses that a deviceID can name a device of.
const (
	pciBus       = "bus/pci/devices"
	auxiliaryBus = "bus/auxiliary/devices"
)

func (s sysfs) path(elem ...string) string {
	return filepath.Join(append([]string{string(s)}, elem...)...)
}

// has reports whether a bus has a device of that name.
func (s sysfs) has(bus, device string) bool {
	_, err := os.Stat(s.path(bus, device))
	return err == nil
}

// userDriven reports whether a PCI device is a program's. One without a driver is nobody's.
func (s sysfs) userDriven(pci string) (bool, error) {
	driver, err := filepath.EvalSymlinks(s.path(pciBus, pci, "driver"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return slices.Contains(userDrivers, filepath.Base(driver)), err
}

// interfaces gives the interfaces of a device by its folder: those that are in the namespace of the process that mounted
// the sysfs. The driver of a virtio device keeps them one folder deeper.
func (s sysfs) interfaces(elem ...string) ([]string, error) {
	dir := s.path(elem...)
	at := []string{filepath.Join(dir, "net")}
	if _, err := os.Stat(at[0]); err != nil {
		at, _ = filepath.Glob(filepath.Join(globQuote(dir), "virtio*", "net")) // the pattern is well-formed
	}
	var names []string
	for _, dir := range at {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// globQuote takes the meaning from what filepath.Glob goes by.
func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(s)
}
