// Command proof stands in for the host in proof.sh: it answers probes, asks the API server, writes to its disk and, when
// told to, takes memory until it is killed.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

const account = "/var/run/secrets/kubernetes.io/serviceaccount/"

func main() {
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	http.HandleFunc("/api", answer(askAPI))
	http.HandleFunc("/disk", answer(writeDisk))
	http.HandleFunc("/grow", grow)
	go func() { log.Fatal(http.ListenAndServe(":8080", nil)) }()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	<-ended
}

func answer(ask func() (string, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		text, err := ask()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, text)
	}
}

// askAPI does what every in-cluster client does: address from the environment, token and CA from the projected volume.
func askAPI() (string, error) {
	token, err := os.ReadFile(account + "token")
	if err != nil {
		return "", err
	}
	authority, err := os.ReadFile(account + "ca.crt")
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	server := net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	request, err := http.NewRequest(http.MethodGet, "https://"+server+"/apis", nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+string(token))
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	return fmt.Sprint(server, " ", response.Status), nil
}

func writeDisk() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", err
	}
	return "written", os.WriteFile("/data/"+name, []byte(name), 0o600)
}

func grow(http.ResponseWriter, *http.Request) {
	var held [][]byte
	for {
		block := make([]byte, 1<<20)
		for at := 0; at < len(block); at += 4096 {
			block[at] = 1
		}
		held = append(held, block)
	}
}
