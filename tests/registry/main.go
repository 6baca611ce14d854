// A real OCI registry for tests: in memory, on loopback, until its standard input ends.
//
// With -login NAME:PASSWORD it lets nobody else in. A file named by -tamper, as long as it is there, makes it send other bytes
// than those that were stored: what a registry that was broken into does.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	address := flag.String("address", "127.0.0.1:0", "where to listen")
	login := flag.String("login", "", "NAME:PASSWORD of the only one who is let in")
	tamper := flag.String("tamper", "", "as long as this file is there, blobs are not what they were")
	referrers := flag.Bool("referrers", true, "serve the referrers API")
	flag.Parse()
	listener, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	inner := registry.New(registry.WithReferrersSupport(*referrers), registry.Logger(log.New(io.Discard, "", 0)))
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name, password, _ := strings.Cut(*login, ":"); name != "" {
			gotName, gotPassword, _ := r.BasicAuth()
			if gotName != name || gotPassword != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="tests"`)
				w.WriteHeader(http.StatusUnauthorized)
				fmt.Fprintln(w, `{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}`)
				return
			}
		}
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/") {
			// The package says where an upload has gone as other registries do, but for this one answer, which the distribution
			// specification has, too.
			repository := strings.SplitN(r.URL.Path, "/blobs/", 2)[0]
			w.Header().Set("Location", repository+"/blobs/"+r.URL.Query().Get("digest"))
		}
		_, err := os.Stat(*tamper)
		if *tamper == "" || err != nil || r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/sha256:") {
			inner.ServeHTTP(w, r)
			return
		}
		recorded := httptest.NewRecorder()
		inner.ServeHTTP(recorded, r)
		body := bytes.Clone(recorded.Body.Bytes())
		if len(body) > 0 {
			body[len(body)-1] ^= 1
		}
		w.WriteHeader(recorded.Code)
		w.Write(body)
	})
	fmt.Println(listener.Addr())
	log.Fatal(http.Serve(listener, handler))
}
