package linux

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
)

// classes maps what the kernel says to what callers can ask for.
var classes = []struct {
	class  error
	errnos []unix.Errno
}{
	{kernel.ErrExists, []unix.Errno{unix.EEXIST}},
	{kernel.ErrAbsent, []unix.Errno{unix.ENODEV, unix.ENXIO, unix.ENOENT, unix.ESRCH, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN}},
	{kernel.ErrUnsupported, []unix.Errno{unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ENOSYS}},
	{kernel.ErrInUse, []unix.Errno{unix.EADDRINUSE}},
}

var sentinels = []error{kernel.ErrExists, kernel.ErrAbsent, kernel.ErrNamespaceGone, kernel.ErrInUse, kernel.ErrUnsupported}

// fail wraps err with the object that it is about and with its class.
func fail(o kernel.Object, err error) error {
	if err == nil {
		return nil
	}
	for _, s := range sentinels {
		if errors.Is(err, s) {
			return fmt.Errorf("%s: %w", o, err)
		}
	}
	for _, c := range classes {
		if isErrno(err, c.errnos...) {
			return fmt.Errorf("%s: %w: %w", o, c.class, err)
		}
	}
	return fmt.Errorf("%s: %w", o, err)
}

func isErrno(err error, errnos ...unix.Errno) bool {
	for _, e := range errnos {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// gone reports whether err says that what was asked for is not there.
func gone(err error) bool {
	return errors.Is(err, kernel.ErrNamespaceGone) ||
		isErrno(err, unix.ENODEV, unix.ENOENT, unix.ESRCH, unix.EADDRNOTAVAIL, unix.ENXIO)
}
