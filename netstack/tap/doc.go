// Package tap is the device between the guest's kernel and the stack: a TAP whose
// other end is in the guest's network namespace.
//
// With IFF_VNET_HDR and TUNSETOFFLOAD (include/uapi/linux/if_tun.h) every frame
// carries a virtio-net header, and the kernel hands over and takes segments of up
// to 64 KiB whatever the MTU of the link is. That is where the speed at MTU 1500
// comes from. Where the kernel refuses, or when it is told to, the device is a
// songgao/water interface of plain Ethernet frames behind the same type.
//
// A Device is made in two steps because two processes share the work: the monitor
// attaches (ioctls, privileges), the engine adopts the finished descriptor and
// moves the frames.
package tap
