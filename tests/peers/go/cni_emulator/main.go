// cni_emulator is the sender of the walk-through, as any stranger would write it from that text:
// it connects to ztunnel's Unix stream socket, opens the pod's netns file, sends the byte 0x01
// with that one descriptor, says so, and closes without reading any answer.
//
// Usage: cni_emulator SOCKET NETNS_PATH
//
// Standard library only (package syscall), so that a build needs no module from anywhere.
package main

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: cni_emulator SOCKET NETNS_PATH")
		os.Exit(2)
	}
	if err := hand(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "cni_emulator:", err)
		os.Exit(1)
	}
	fmt.Println("listeners ready")
}

func hand(socket, netns string) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	file, err := os.Open(netns)
	if err != nil {
		return err
	}
	defer file.Close()
	_, _, err = conn.WriteMsgUnix([]byte{1}, syscall.UnixRights(int(file.Fd())), nil)
	return err
}
