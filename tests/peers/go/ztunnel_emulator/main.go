// ztunnel_emulator is the receiver of the walk-through, as any stranger would write it from that
// text.
//
// Usage: ztunnel_emulator [-hold | -loop] SOCKET
//
// Without -loop it does what the text shows: removes whatever lies at SOCKET, listens there,
// accepts ONE connection, receives one netns descriptor, enters that netns, makes listeners on
// 127.0.0.1:15008, 15006 and 15001, comes home, prints "listeners ready" and never answers. It
// serves "ok\n" on the three ports until it is killed. The connection is closed once the
// listeners are up; with -hold it stays open.
//
// With -loop it is something to measure: it accepts connections for ever and on each any number
// of requests, one at a time, until the peer closes:
//
//	0x01 + one fd     makes the three listeners in that netns, answers "ready\n"
//	0x02 + one fd     closes the listeners of that netns, answers "released\n"
//	0x02 without fd   closes all listeners, answers "released\n"
//
// Anything that fails is answered by "error REASON\n". Home is opened once, at the start.
// "listening\n" on stdout says that SOCKET is ready (both forms).
//
// Standard library only (package syscall), so that a build needs no module from anywhere.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
)

var ports = []string{"15008", "15006", "15001"}

func main() {
	hold := flag.Bool("hold", false, "keep the connection open after the handoff")
	loop := flag.Bool("loop", false, "serve any number of connections and answer each request")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: ztunnel_emulator [-hold | -loop] SOCKET")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *hold, *loop); err != nil {
		fmt.Fprintln(os.Stderr, "ztunnel_emulator:", err)
		os.Exit(1)
	}
}

func run(socket string, hold, loop bool) error {
	// A plain number: an os.File that nothing refers to any more is closed by the garbage collector.
	home, err := syscall.Open("/proc/thread-self/ns/net", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_ = os.Remove(socket)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	fmt.Println("listening")
	if loop {
		return serveAll(listener, &held{home: home, byNetns: map[uint64][]net.Listener{}})
	}
	return serveOne(listener, home, hold)
}

// serveOne is the walk-through: one connection, one descriptor, no answer.
func serveOne(listener *net.UnixListener, home int, hold bool) error {
	conn, err := listener.AcceptUnix()
	if err != nil {
		return err
	}
	_, netns, err := receive(conn)
	if err != nil {
		return err
	}
	if netns < 0 {
		return errors.New("no descriptor in the message")
	}
	made, err := listenIn(netns, home)
	if err != nil {
		return err
	}
	syscall.Close(netns)
	for _, l := range made {
		go serveOk(l)
	}
	fmt.Println("listeners ready")
	if !hold {
		conn.Close()
	}
	<-make(chan struct{})
	runtime.KeepAlive(conn) // or its finalizer would close it
	return nil
}

// receive returns one request byte and its descriptor, -1 if none came with it.
func receive(conn *net.UnixConn) (byte, int, error) {
	data := make([]byte, 1)
	control := make([]byte, syscall.CmsgSpace(4))
	n, controlLen, _, _, err := conn.ReadMsgUnix(data, control)
	if err != nil {
		return 0, -1, err
	}
	if n == 0 {
		return 0, -1, errors.New("peer closed")
	}
	if controlLen == 0 {
		return data[0], -1, nil
	}
	messages, err := syscall.ParseSocketControlMessage(control[:controlLen])
	if err != nil {
		return 0, -1, err
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, -1, err
	}
	for _, extra := range fds[1:] {
		syscall.Close(extra)
	}
	return data[0], fds[0], nil
}

// listenIn makes the three listeners in the netns. A namespace is a property of the thread, so
// the goroutine stays on its thread meanwhile; a thread that cannot come home is not given back
// to the scheduler.
func listenIn(netns, home int) ([]net.Listener, error) {
	runtime.LockOSThread()
	if err := setns(netns); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("setns: %w", err)
	}
	made, err := listenAll()
	if back := setns(home); back != nil {
		fmt.Fprintln(os.Stderr, "ztunnel_emulator: cannot come home:", back)
		os.Exit(1)
	}
	runtime.UnlockOSThread()
	return made, err
}

func setns(fd int) error {
	_, _, errno := syscall.RawSyscall(sysSetns, uintptr(fd), syscall.CLONE_NEWNET, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func listenAll() ([]net.Listener, error) {
	var made []net.Listener
	for _, port := range ports {
		l, err := net.Listen("tcp4", "127.0.0.1:"+port)
		if err != nil {
			closeAll(made)
			return nil, err
		}
		made = append(made, l)
	}
	return made, nil
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

func serveOk(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Write([]byte("ok\n"))
		conn.Close()
	}
}

// held is the state of -loop: which listeners belong to which netns, by its inode.
type held struct {
	home    int
	mutex   sync.Mutex
	byNetns map[uint64][]net.Listener
}

func serveAll(listener *net.UnixListener, h *held) error {
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return err
		}
		go h.serve(conn)
	}
}

func (h *held) serve(conn *net.UnixConn) {
	defer conn.Close()
	for {
		request, netns, err := receive(conn)
		if err != nil {
			return
		}
		answer := h.obey(request, netns)
		if netns >= 0 {
			syscall.Close(netns)
		}
		if _, err := conn.Write([]byte(answer)); err != nil {
			return
		}
	}
}

func (h *held) obey(request byte, netns int) string {
	switch {
	case request == 1 && netns >= 0:
		return h.take(netns)
	case request == 2:
		return h.release(netns)
	}
	return "error unknown request\n"
}

func (h *held) take(netns int) string {
	inode, err := inodeOf(netns)
	if err != nil {
		return fmt.Sprintf("error %v\n", err)
	}
	made, err := listenIn(netns, h.home)
	if err != nil {
		return fmt.Sprintf("error %v\n", err)
	}
	for _, l := range made {
		go serveOk(l)
	}
	h.mutex.Lock()
	h.byNetns[inode] = append(h.byNetns[inode], made...)
	h.mutex.Unlock()
	return "ready\n"
}

func (h *held) release(netns int) string {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if netns < 0 {
		for inode, listeners := range h.byNetns {
			closeAll(listeners)
			delete(h.byNetns, inode)
		}
		return "released\n"
	}
	inode, err := inodeOf(netns)
	if err != nil {
		return fmt.Sprintf("error %v\n", err)
	}
	closeAll(h.byNetns[inode])
	delete(h.byNetns, inode)
	return "released\n"
}

func inodeOf(fd int) (uint64, error) {
	var stat syscall.Stat_t
	if err := syscall.Fstat(fd, &stat); err != nil {
		return 0, err
	}
	return stat.Ino, nil
}
