package httpdoor

import (
	_ "embed"
	"fmt"
	"net/http"
)

// openAPIDocument describes all that the door does, in OpenAPI 3.1. It is written by hand, so that it says what is
// meant; a test holds it to what the handlers answer and to the types of package api.
//
//go:embed openapi.json
var openAPIDocument []byte

func (d *Door) openAPI(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(openAPIDocument)))
	_, _ = w.Write(openAPIDocument) // a caller that is gone is no error of ours
	return nil
}
