// Command archive packs files into an image archive (an OCI layout in a tar file) without a registry or Docker:
//
//	archive [--user UID:GID] [--env NAME=VALUE]... NAME:TAG OUT.tar FILE=/PATH/IN/IMAGE...
//
// The first file is the entry point. `ctr images import OUT.tar` and other OCI tools read the result.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"
)

const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

// descriptor names a blob by its digest.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// object is JSON with few fields; Go sorts the keys, so the same files give the same digests.
type object = map[string]any

func main() {
	user := flag.String("user", "65532:65532", "whom the entry point runs as")
	var environment []string
	flag.Func("env", "a variable of the image, NAME=VALUE", func(text string) error {
		environment = append(environment, text)
		return nil
	})
	flag.Parse()
	if flag.NArg() < 3 {
		fmt.Fprintln(os.Stderr, "archive [--user UID:GID] [--env NAME=VALUE]... NAME:TAG OUT.tar FILE=/PATH/IN/IMAGE...")
		os.Exit(2)
	}
	if err := pack(flag.Arg(0), flag.Arg(1), flag.Args()[2:], *user, environment); err != nil {
		fmt.Fprintln(os.Stderr, "archive:", err)
		os.Exit(1)
	}
}

func pack(name, out string, files []string, user string, environment []string) error {
	layer, entry, err := layerOf(files)
	if err != nil {
		return err
	}
	var image tarball
	config := image.addJSON(configType, object{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       object{"Entrypoint": []string{entry}, "User": user, "Env": environment},
		"rootfs":       object{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
	manifest := image.addJSON(manifestType, object{
		"schemaVersion": 2,
		"mediaType":     manifestType,
		"config":        config,
		"layers":        []descriptor{image.addBlob(layerType, layer)},
	})
	manifest.Annotations = map[string]string{
		"io.containerd.image.name":          full(name),
		"org.opencontainers.image.ref.name": name,
	}
	index := object{"schemaVersion": 2, "mediaType": indexType, "manifests": []descriptor{manifest}}
	image.add("index.json", 0o644, marshal(index))
	image.add("oci-layout", 0o644, marshal(object{"imageLayoutVersion": "1.0.0"}))
	content, err := image.bytes()
	if err != nil {
		return err
	}
	return os.WriteFile(out, content, 0o644)
}

// full is the name the kubelet asks for when a pod says `name`.
func full(name string) string {
	first, _, more := strings.Cut(name, "/")
	switch {
	case !more:
		return "docker.io/library/" + name
	case strings.ContainsAny(first, ".:") || first == "localhost":
		return name
	default:
		return "docker.io/" + name
	}
}

// layerOf reads FILE=/PATH pairs into an uncompressed layer, and gives back the first path.
func layerOf(files []string) (content []byte, entry string, err error) {
	var layer tarball
	for _, pair := range files {
		file, place, found := strings.Cut(pair, "=")
		if !found || !path.IsAbs(place) {
			return nil, "", fmt.Errorf("%q is not FILE=/PATH", pair)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, "", err
		}
		info, err := os.Stat(file)
		if err != nil {
			return nil, "", err
		}
		if entry == "" {
			entry = path.Clean(place)
		}
		layer.add(strings.TrimPrefix(path.Clean(place), "/"), info.Mode().Perm()|0o444, text)
	}
	content, err = layer.bytes()
	return content, entry, err
}

// tarball writes files without dates and owners. The first error is kept until the end.
type tarball struct {
	buffer bytes.Buffer
	writer *tar.Writer
	made   map[string]bool
	err    error
}

func (t *tarball) header(header *tar.Header) {
	if t.writer == nil {
		t.writer, t.made = tar.NewWriter(&t.buffer), map[string]bool{}
	}
	if !t.made[header.Name] {
		t.made[header.Name] = true
		t.err = errors.Join(t.err, t.writer.WriteHeader(header))
	}
}

func (t *tarball) add(name string, mode os.FileMode, content []byte) {
	for at, letter := range name {
		if letter == '/' {
			t.header(&tar.Header{Typeflag: tar.TypeDir, Name: name[:at+1], Mode: 0o755})
		}
	}
	if t.made[name] { // A blob that is there already.
		return
	}
	t.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode), Size: int64(len(content))})
	_, err := t.writer.Write(content)
	t.err = errors.Join(t.err, err)
}

func (t *tarball) addBlob(mediaType string, content []byte) descriptor {
	name := digest(content)
	t.add("blobs/"+strings.Replace(name, ":", "/", 1), 0o644, content)
	return descriptor{MediaType: mediaType, Digest: name, Size: len(content)}
}

func (t *tarball) addJSON(mediaType string, value object) descriptor {
	return t.addBlob(mediaType, marshal(value))
}

func (t *tarball) bytes() ([]byte, error) {
	err := errors.Join(t.err, t.writer.Close())
	return t.buffer.Bytes(), err
}

func digest(content []byte) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(content))
}

func marshal(value object) []byte {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // Maps, strings and numbers always are JSON.
	}
	return text
}
