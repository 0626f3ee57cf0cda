package cni

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/seine-net/seine/api"
)

// maxAnswer bounds what is read of an answer, in bytes. A list of endpoints takes less than one kilobyte for each.
const maxAnswer = 64 << 20

var (
	// errNoDaemon says that nobody listens: the request was not sent.
	errNoDaemon = errors.New("no daemon answers")
	// errBrokeOff says that no whole answer came: the request may have been carried out.
	errBrokeOff = errors.New("the daemon's answer did not come")
)

// daemon is seined's HTTP API on a unix socket. The exchange is written by hand, as net/http would make every start of
// every plugin dearer: docs/decisions/016-http-by-hand.md.
type daemon struct{ socket string }

// ask sends one request (RFC 9112) and reads the answer's body into out, if that is not nil. condition is a header line
// or "". What the daemon refuses is an *api.Error.
func (d daemon) ask(ctx context.Context, method, path, condition string, body, out any) error {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", d.socket)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err // without the socket once more
		}
		return fmt.Errorf("socket %q: %w (%w); start seined", d.socket, errNoDaemon, err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // a socket of this kind has deadlines
	defer stop()
	status, answer, err := exchange(c, method, path, condition, body)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("socket %q: %s %s: %w: %w", d.socket, method, path, errBrokeOff, err)
	}
	if status >= 300 {
		var said api.ErrorBody
		if json.Unmarshal(answer, &said) == nil && said.Error != nil && said.Error.Code != "" {
			return said.Error
		}
		return fmt.Errorf("socket %q: %s %s: status %d is no answer of seined", d.socket, method, path, status)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("socket %q: %s %s: %w: %w", d.socket, method, path, errBrokeOff, err)
	}
	return nil
}

func exchange(c io.ReadWriter, method, path, condition string, body any) (status int, answer []byte, err error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: seine\r\nUser-Agent: seine-cni\r\nConnection: close\r\n", method, path)
	if condition != "" {
		b.WriteString(condition + "\r\n")
	}
	var payload []byte
	if body != nil {
		if payload, err = json.Marshal(body); err != nil {
			return 0, nil, err
		}
		fmt.Fprintf(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(payload))
	}
	b.WriteString("\r\n")
	b.Write(payload)
	if _, err := c.Write(b.Bytes()); err != nil {
		return 0, nil, err
	}
	return readAnswer(io.LimitReader(c, maxAnswer))
}

// readAnswer reads a response. It takes the two forms in which Go's server marks the end of a body, and refuses all that
// could be understood in two ways: what is not whole must not be taken for an answer.
func readAnswer(r io.Reader) (status int, body []byte, err error) {
	in := bufio.NewReader(r)
	line, err := readLine(in)
	if err != nil {
		return 0, nil, err
	}
	code, _, _ := strings.Cut(strings.TrimPrefix(line, "HTTP/1.1 "), " ")
	if status, err = strconv.Atoi(code); err != nil || !strings.HasPrefix(line, "HTTP/1.1 ") || len(code) != 3 || status < 200 {
		return 0, nil, fmt.Errorf("%.40q is no status line", line)
	}
	length, chunked, err := readHeader(in)
	switch {
	case err != nil:
	case status == 204 || status == 304:
	case chunked:
		body, err = readChunks(in)
	case length < 0:
		err = errors.New("it does not say how long it is")
	default:
		body, err = readExactly(in, length)
	}
	return status, body, err
}

// readHeader reads up to the empty line and gives what is said about the body; length is -1 where nothing is.
func readHeader(in *bufio.Reader) (length int64, chunked bool, err error) {
	length = -1
	for {
		line, err := readLine(in)
		if err != nil || line == "" {
			if chunked && length >= 0 {
				err = errors.New("it has a length and chunks")
			}
			return length, chunked, err
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok || key == "" || strings.Trim(strings.ToLower(key), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return 0, false, fmt.Errorf("%.40q is no header", line)
		}
		switch value = strings.Trim(value, " \t"); strings.ToLower(key) {
		case "content-length":
			n, err := strconv.ParseUint(value, 10, 62)
			if err != nil || length >= 0 {
				return 0, false, fmt.Errorf("Content-Length %.40q is none, or a second one", value)
			}
			length = int64(n)
		case "transfer-encoding":
			if value != "chunked" || chunked {
				return 0, false, fmt.Errorf("Transfer-Encoding %.40q is not known", value)
			}
			chunked = true
		}
	}
}

func readChunks(in *bufio.Reader) ([]byte, error) {
	var body []byte
	for {
		line, err := readLine(in)
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseUint(line, 16, 31)
		if err != nil || len(line) > 8 {
			return nil, fmt.Errorf("%.40q is no length of a chunk", line)
		}
		chunk, err := readExactly(in, int64(n))
		if err != nil {
			return nil, err
		}
		body = append(body, chunk...)
		if end, err := readLine(in); err != nil || end != "" {
			return nil, errors.Join(fmt.Errorf("a chunk of %d bytes does not end there", n), err)
		}
		if n == 0 {
			return body, nil
		}
	}
}

// readExactly does not trust n with memory.
func readExactly(in io.Reader, n int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(in, n))
	if err == nil && int64(len(data)) != n {
		err = io.ErrUnexpectedEOF
	}
	return data, err
}

// readLine reads a line without its end.
func readLine(in *bufio.Reader) (string, error) {
	line, err := in.ReadSlice('\n')
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	text, ok := strings.CutSuffix(string(line), "\r\n")
	if err == nil && (!ok || strings.ContainsAny(text, "\r\x00")) {
		err = fmt.Errorf("%.40q is no line", line)
	}
	return text, err
}
