// Command peer is all that is in the image of the containers:
//
//	peer pause                   does nothing until it is ended
//	peer serve NAME PORT...      echoes TCP and UDP as the lab's servers do: "NAME ASKER'S-ADDRESS LINE"
//	peer ask NETWORK ADDRESS     sends a line to such a server and prints the answer; waits for one that still starts
package main

import (
	"bufio"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	switch verb := os.Args[1]; verb {
	case "pause":
	case "serve":
		for _, port := range os.Args[3:] {
			serve(os.Args[2], ":"+port)
		}
	case "ask":
		answer, err := ask(os.Args[2], os.Args[3])
		for end := time.Now().Add(10 * time.Second); errors.Is(err, syscall.ECONNREFUSED) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			answer, err = ask(os.Args[2], os.Args[3])
		}
		check(err)
		fmt.Print(answer)
		return
	default:
		log.Fatalf("verb %q: is not known", verb)
	}
	<-end
}

func serve(name, address string) {
	l, err := net.Listen("tcp", address)
	check(err)
	go func() {
		for {
			c, err := l.Accept()
			check(err)
			go func() {
				defer c.Close()
				lines := bufio.NewReader(c)
				for line, err := lines.ReadString('\n'); err == nil; line, err = lines.ReadString('\n') {
					fmt.Fprintf(c, "%s %s %s", name, asker(c.RemoteAddr()), line)
				}
			}()
		}
	}()
	u, err := net.ListenPacket("udp", address)
	check(err)
	go func() {
		buf := make([]byte, 2048)
		for {
			k, from, err := u.ReadFrom(buf)
			check(err)
			_, _ = u.WriteTo(fmt.Appendf(nil, "%s %s %s", name, asker(from), buf[:k]), from)
		}
	}()
}

// asker is an address with IPv4 as such: the sockets are for both families.
func asker(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	check(err)
	return net.JoinHostPort(net.ParseIP(host).String(), port)
}

func ask(network, address string) (string, error) {
	c, err := net.DialTimeout(network, address, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	check(c.SetDeadline(time.Now().Add(2 * time.Second)))
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return "", err
	}
	return bufio.NewReader(c).ReadString('\n')
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
