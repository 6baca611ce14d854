// Command control-plane is etcd, kube-apiserver and kube-controller-manager in one file, for tests and the demo.
//
// The name it is started under chooses the program, so a folder of links to it
// stands in for a folder of the real binaries.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

func main() {
	if os.Getenv("NAGAYA_LIFELINE") == "stdin" {
		go endWithStdin()
	}
	switch name := filepath.Base(os.Args[0]); name {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "kube-controller-manager":
		os.Exit(cli.Run(manager.NewControllerManagerCommand()))
	default:
		fmt.Fprintf(os.Stderr, "%s: start me as etcd, kube-apiserver or kube-controller-manager\n", name)
		os.Exit(2)
	}
}

// endWithStdin ends this process when its parent is gone: the parent holds the other end of stdin and never writes.
func endWithStdin() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(1)
}
