package udp

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seine-net/seine/internal/kernel"
	"github.com/seine-net/seine/internal/testkit"
)

// BenchmarkCarry measures TCP, the time of a question and its answer, and UDP at a container's pace and at twice what
// arrives of that, beside a forwarder that makes a system call per packet, as flannel's udp does. Run it with
// -benchtime 1x: each takes its own time, and both in turn.
func BenchmarkCarry(b *testing.B) {
	testkit.Need(b, "program:iperf3")
	for _, way := range []string{"seine", "naive"} {
		b.Run(way, func(b *testing.B) {
			ends := pair(b, false)
			if way == "seine" {
				start(b, ends)
			} else {
				startNaive(b, ends)
			}
			ctx, cancel := context.WithCancel(context.Background())
			served := make(chan struct{})
			go func() {
				defer close(served)
				_, _ = ends[1].container.Exec(ctx, "iperf3", "-s") // ends by being killed
			}()
			defer func() { cancel(); <-served }()
			var gbit, micros, capacity, kept []float64
			for b.Loop() {
				gbit = append(gbit, iperf(b, ends, "-t", "3")/1e9)
				micros = append(micros, exchange(b, ends))
				most := 0.0 // of 1200 bytes, by whatever rate it is reached
				for rate := 100e6; rate <= max(400e6, 3*most); rate *= 1.5 {
					most = max(most, iperf(b, ends, "-u", "-l", "1200", "-t", "1", "-b", fmt.Sprintf("%.0f", rate)))
				}
				twice := iperf(b, ends, "-u", "-l", "1200", "-t", "2", "-b", fmt.Sprintf("%.0f", 2*most))
				capacity, kept = append(capacity, most/1e9), append(kept, twice/most)
			}
			for _, m := range []struct {
				unit string
				of   []float64
			}{{"TCP-Gbit/s", gbit}, {"RR-us", micros}, {"UDP-Gbit/s", capacity}, {"kept-at-2x", kept}} {
				slices.Sort(m.of)
				b.ReportMetric(m.of[len(m.of)/2], m.unit)
			}
			b.ReportMetric(0, "ns/op")
			b.Logf("%s: %+v", way, ends[1].runner.Stats())
		})
	}
}

// iperf gives the bits per second that arrive.
func iperf(b *testing.B, ends [2]*end, args ...string) float64 {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	type part struct {
		Rate float64 `json:"bits_per_second"`
		Lost float64 `json:"lost_percent"`
	}
	var report struct {
		Error string `json:"error"`
		End   struct {
			Received part `json:"sum_received"`
			Sum      part `json:"sum"`
		} `json:"end"`
	}
	for {
		report.Error = ""
		out, err := ends[0].container.Exec(ctx, "iperf3", append([]string{"-J", "-c", ends[1].inner[0].String()}, args...)...)
		if err == nil {
			err = json.Unmarshal([]byte(out), &report)
		}
		if err == nil && report.Error == "" {
			break
		}
		if ctx.Err() != nil { // else the server has not begun to listen, or a packet of the beginning was lost
			b.Fatal(err, report.Error)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if report.End.Received.Rate > 0 {
		return report.End.Received.Rate
	}
	return report.End.Sum.Rate * (1 - report.End.Sum.Lost/100)
}

// exchange gives the median time, in microseconds, of a question of one byte and its answer by TCP.
func exchange(b *testing.B, ends [2]*end) float64 {
	b.Helper()
	l, err := ends[1].container.Listen("tcp", netip.AddrPortFrom(ends[1].inner[0], 0).String())
	must(b, err)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		one := make([]byte, 1)
		for {
			if _, err := c.Read(one); err != nil {
				return
			}
			if _, err := c.Write(one); err != nil {
				return
			}
		}
	}()
	c, err := ends[0].container.Dial(context.Background(), "tcp", l.Addr().String())
	must(b, err)
	defer c.Close()
	var took []time.Duration
	one := make([]byte, 1)
	for range 10000 {
		at := time.Now()
		_, err := c.Write(one)
		must(b, err)
		_, err = c.Read(one)
		must(b, err)
		took = append(took, time.Since(at))
	}
	slices.Sort(took)
	return float64(took[len(took)/2].Nanoseconds()) / 1e3
}

// startNaive has both machines carry packets one by one: read, send; receive, write.
func startNaive(b *testing.B, ends [2]*end) {
	b.Helper()
	for i, e := range ends {
		other := ends[1-i]
		e.objects = []kernel.Object{&kernel.Link{Name: LinkName, Type: kernel.Tun, MTU: Fabric{}.Traits().MTU(1500, false), Alias: "seine:naive"},
			&kernel.LinkUp{Link: LinkName}}
		e.apply(b)
		var tun, sock int
		must(b, e.ns.Do(func() (err error) {
			if tun, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
				return err
			}
			req, err := unix.NewIfreq(LinkName)
			if err != nil {
				return err
			}
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, req); err != nil {
				return err
			}
			sock, err = openSocket(false, DefaultPort)
			return err
		}))
		must(b, unix.SetNonblock(sock, true))
		must(b, unix.SetsockoptInt(sock, unix.IPPROTO_UDP, unix.UDP_GRO, 0))
		stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		must(b, err)
		for _, a := range other.inner[:1] {
			p, err := a.Prefix(24)
			must(b, err)
			e.objects = append(e.objects, &kernel.Route{Dst: p, Link: LinkName})
		}
		e.apply(b)
		to := &unix.SockaddrInet4{Port: DefaultPort, Addr: other.node.Addresses[0].As4()}
		done := make(chan struct{}, 2)
		loop := func(fd int, pass func([]byte)) {
			defer func() { done <- struct{}{} }()
			buf := make([]byte, 2000)
			for {
				n, err := unix.Read(fd, buf)
				if err == nil {
					pass(buf[:n])
				} else if stopped, _ := await(fd, stop); stopped {
					return
				}
			}
		}
		go loop(tun, func(p []byte) { _ = unix.Sendto(sock, p, 0, to) })
		go loop(sock, func(p []byte) { _, _ = unix.Write(tun, p) })
		b.Cleanup(func() {
			_, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
			<-done
			<-done
			for _, fd := range []int{tun, sock, stop} {
				unix.Close(fd)
			}
		})
	}
}
