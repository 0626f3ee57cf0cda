package docker

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// daemonAt answers as a Docker daemon would.
func daemonAt(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "d")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	s.Start()
	t.Cleanup(s.Close)
	return path
}

func TestDaemonGet(t *testing.T) {
	d := NewDaemon(daemonAt(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/networks":
			_, _ = w.Write([]byte(`[{"Name":"` + r.URL.Query().Get("filters") + `"}]`))
		case "/plain":
			http.Error(w, "no such page", http.StatusBadRequest)
		case "/broken":
			_, _ = w.Write([]byte(`[{`))
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"message":"network x not found"}`))
		}
	}))
	var got []struct{ Name string }
	if err := d.Get(t.Context(), "/networks?filters=a", &got); err != nil || len(got) != 1 || got[0].Name != "a" {
		t.Errorf("got %v, %v", got, err)
	}
	var refused *DaemonError
	if err := d.Get(t.Context(), "/networks/x", &got); !errors.As(err, &refused) || refused.Status != 404 || refused.Message != "network x not found" {
		t.Errorf("a refusal gave %v", err)
	}
	if err := d.Get(t.Context(), "/plain", &got); !errors.As(err, &refused) || refused.Message != "no such page" {
		t.Errorf("a refusal in plain text gave %v", err)
	}
	if err := d.Get(t.Context(), "/broken", &got); err == nil || !strings.Contains(err.Error(), "/broken") {
		t.Errorf("half an answer gave %v", err)
	}
	if err := NewDaemon(filepath.Join(t.TempDir(), "none")).Get(t.Context(), "/networks", &got); err == nil {
		t.Error("a daemon that is not there answered")
	}
}
