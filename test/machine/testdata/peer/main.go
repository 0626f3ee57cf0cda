// Command peer is what the stories about `seine run` run: a web server that says who asks, and a client.
//
//	peer serve ADDRESS...             serves until it is ended; says "serving ADDRESS" on standard output first
//	peer get tcp4[,tcp6] URL          asks over each family; prints "FAMILY SERVER'S-ADDRESS ANSWER" for each
//	peer lookup NAME...               prints "NAME ADDRESS ADDRESS…", sorted
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	switch verb := os.Args[1]; verb {
	case "serve":
		for _, address := range os.Args[2:] {
			l, err := net.Listen("tcp", address)
			check(err)
			fmt.Println("serving", address)
			go func() { check(http.Serve(l, http.HandlerFunc(answer))) }()
		}
		select {}
	case "get":
		for _, family := range strings.Split(os.Args[2], ",") {
			get(ctx, family, os.Args[3])
		}
	case "lookup":
		for _, name := range os.Args[2:] {
			found, err := net.DefaultResolver.LookupHost(ctx, name)
			check(err)
			slices.Sort(found)
			fmt.Println(name, strings.Join(found, " "))
		}
	default:
		log.Fatalf("verb %q: is not known", verb)
	}
}

// answer says the server's host name and the asker's address as the server sees it.
func answer(w http.ResponseWriter, r *http.Request) {
	host, _ := os.Hostname()
	from, _, _ := net.SplitHostPort(r.RemoteAddr)
	fmt.Fprintln(w, host, from)
}

func get(ctx context.Context, family, url string) {
	var server string
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, family, address)
		if err == nil {
			server, _, _ = net.SplitHostPort(conn.RemoteAddr().String())
		}
		return conn, err
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	check(err)
	resp, err := c.Do(req)
	check(err)
	body, err := io.ReadAll(resp.Body)
	check(err)
	fmt.Printf("%s %s %s", family, server, body)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
