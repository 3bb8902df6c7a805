package tap

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// Mode says which offloads to ask the kernel for.
type Mode string

// The modes of --offload.
const (
	Auto Mode = "auto" // whatever the kernel grants
	Off  Mode = "off"  // plain frames
)

// ParseMode reads the value of --offload.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Auto, Off:
		return m, nil
	}
	return "", fmt.Errorf("offload %q is unknown: use auto or off", s)
}

// Offload is a set of TUN_F_* bits of include/uapi/linux/if_tun.h. Zero means a
// device of plain frames, without a virtio-net header.
type Offload uint32

// The bits of Offload.
const (
	CSum   Offload = unix.TUN_F_CSUM
	TSO4   Offload = unix.TUN_F_TSO4
	TSO6   Offload = unix.TUN_F_TSO6
	TSOECN Offload = unix.TUN_F_TSO_ECN
	USO4   Offload = unix.TUN_F_USO4 // Linux 6.2
	USO6   Offload = unix.TUN_F_USO6 // Linux 6.2
)

// Has reports whether all bits of o2 are in o.
func (o Offload) Has(o2 Offload) bool { return o&o2 == o2 }

// String lists the names of the bits, "none" for plain frames.
func (o Offload) String() string {
	names := []struct {
		bit  Offload
		name string
	}{{CSum, "csum"}, {TSO4, "tso4"}, {TSO6, "tso6"}, {TSOECN, "tso-ecn"}, {USO4, "uso4"}, {USO6, "uso6"}}
	var on []string
	for _, n := range names {
		if o.Has(n.bit) {
			on = append(on, n.name)
		}
	}
	if len(on) == 0 {
		return "none"
	}
	return strings.Join(on, ",")
}

// Device is one queue of a TAP device. Closing its File ends it.
type Device struct {
	file    *os.File
	fd      uintptr          // file's descriptor, for calls past the poller
	plain   *water.Interface // file of a device of plain frames, nil otherwise
	name    string
	offload Offload
	reason  string
}

// Attach makes tun, an open /dev/net/tun, the device name: a new one, or one that
// exists already (ip tuntap add mode tap). The network namespace is the one in
// force when tun was opened. Offloads are asked for one by one. The Device owns
// tun; on error tun is closed.
//
// Errors wrap the errno of TUNSETIFF: EBUSY (another process has the device),
// EPERM (no CAP_NET_ADMIN in the namespace), EINVAL (name is no TAP).
func Attach(tun *os.File, name string, m Mode) (*Device, error) {
	d, err := attach(tun, name, m)
	if err != nil {
		return nil, errors.Join(err, tun.Close())
	}
	return d, nil
}

func attach(tun *os.File, name string, m Mode) (*Device, error) {
	if len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("attach TAP %q: name longer than %d bytes: %w", name, unix.IFNAMSIZ-1, unix.ENAMETOOLONG)
	}
	fd := int(tun.Fd())
	if m == Off {
		if err := setIff(fd, name, 0); err != nil {
			return nil, attachError(name, err)
		}
		return Adopt(tun, name, 0)
	}
	err := setIff(fd, name, unix.IFF_VNET_HDR)
	if err == nil {
		offload, err := probe(fd)
		if err != nil {
			return nil, fmt.Errorf("attach TAP %q: %w", name, err)
		}
		return Adopt(tun, name, offload)
	}
	// EINVAL is also what an existing device that is no TAP answers; the second
	// attempt tells the two apart.
	if !errors.Is(err, unix.EINVAL) {
		return nil, attachError(name, err)
	}
	if err := setIff(fd, name, 0); err != nil {
		return nil, attachError(name, err)
	}
	d, err := Adopt(tun, name, 0)
	if err == nil {
		d.reason = "the kernel refuses IFF_VNET_HDR"
	}
	return d, err
}

func attachError(name string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EBUSY):
		hint = " (another process is attached to it)"
	case errors.Is(err, unix.EINVAL):
		hint = " (an interface of that name exists and is no single-queue TAP)"
	}
	return fmt.Errorf("attach TAP %q: TUNSETIFF: %w%s", name, err, hint)
}

func setIff(fd int, name string, flags uint16) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | flags)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
}

// probe sets the offloads that the kernel has. TSO and USO are accepted only with
// CSUM, and USO4 only together with USO6 (drivers/net/tun.c, set_offload), so the
// set grows by those steps. A device without CSUM keeps its virtio-net header;
// only the header's promises are missing then.
func probe(fd int) (Offload, error) {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, HeaderLen); err != nil {
		return 0, fmt.Errorf("TUNSETVNETHDRSZ %d: %w", HeaderLen, err)
	}
	var have Offload
	for _, more := range []Offload{CSum, TSO4, TSO6, TSOECN, USO4 | USO6} {
		if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(have|more)) == nil {
			have |= more
		}
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(have)); err != nil {
		return 0, fmt.Errorf("TUNSETOFFLOAD %s: %w", have, err)
	}
	if have == 0 {
		return 0, fmt.Errorf("TUNSETOFFLOAD csum: %w: use --offload=off", unix.EINVAL)
	}
	return have, nil
}

// OpenPlain opens the plain-frame device name in the network namespace of the
// calling process and returns its descriptor.
func OpenPlain(name string) (*os.File, error) {
	i, err := water.New(water.Config{
		DeviceType:             water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name},
	})
	if err != nil {
		return nil, fmt.Errorf("open plain TAP %q: %w", name, err)
	}
	f, ok := i.ReadWriteCloser.(*os.File)
	if !ok {
		return nil, errors.Join(fmt.Errorf("open plain TAP %q: water returned a %T, not a file", name, i.ReadWriteCloser), i.Close())
	}
	return f, nil
}

// Adopt makes a Device of f, a TAP that is attached already, with or without
// offloads as o says. The Device owns f.
func Adopt(f *os.File, name string, o Offload) (*Device, error) {
	// The descriptor is duplicated because only one that is non-blocking when
	// os.NewFile sees it is registered with the runtime's poller.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("adopt TAP: duplicate: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("adopt TAP: set non-blocking: %w", err), unix.Close(fd))
	}
	d := &Device{file: os.NewFile(uintptr(fd), "tap:"+name), fd: uintptr(fd), name: name, offload: o}
	if err := f.Close(); err != nil {
		return nil, errors.Join(fmt.Errorf("adopt TAP: %w", err), d.file.Close())
	}
	if o == 0 {
		d.plain = &water.Interface{ReadWriteCloser: d.file}
	}
	return d, nil
}

// File is the descriptor of the device. It stays the Device's own; calling its Fd
// method would make it blocking.
func (d *Device) File() *os.File { return d.file }

// Name is the device's name in the guest's namespace.
func (d *Device) Name() string { return d.name }

// Offload is what the kernel granted; zero means plain frames.
func (d *Device) Offload() Offload { return d.offload }

// Reason says why Attach fell back to plain frames; empty otherwise.
func (d *Device) Reason() string { return d.reason }

// Close ends the device; a reader that waits returns os.ErrClosed. Nobody may
// write any more: the descriptor's number may come back as another file.
func (d *Device) Close() error { return d.file.Close() }
