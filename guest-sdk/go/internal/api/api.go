// Package api is the contract as Go sees it: what a controller can reach, and how a run ends.
package api

import (
	"fmt"
	"strings"
)

// Kind is a kind of object as apiVersion and kind name it.
type Kind struct{ Group, Version, Name string }

// ParseKind reads "apps/v1/Deployment", or "v1/ConfigMap" of the core group.
func ParseKind(name string) (Kind, error) {
	parts := strings.Split(name, "/")
	if len(parts) == 2 {
		parts = append([]string{""}, parts...)
	}
	if len(parts) != 3 || parts[1] == "" || parts[2] == "" {
		return Kind{}, fmt.Errorf("%q is no kind: write group/version/Kind, or v1/Kind for the core group", name)
	}
	return Kind{parts[0], parts[1], parts[2]}, nil
}

// APIVersion is group and version as an object has them.
func (k Kind) APIVersion() string {
	if k.Group == "" {
		return k.Version
	}
	return k.Group + "/" + k.Version
}

// Find says which objects are wanted; empty fields select all.
type Find struct {
	Namespace, Labels, Index, Value string
	Limit                           uint32
	After                           string
}

// Event is told about an object.
type Event struct {
	Kind            Kind
	Namespace, Name string
	Warning         bool
	Reason, Action  string
	Note            string
}

// Field is a key and its value.
type Field struct{ Key, Value string }

// Error is a call that did not do what was asked. Reason is its name in the contract.
type Error struct{ Reason, Message string }

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Reason
	}
	return e.Reason + ": " + e.Message
}

// Ownership of an apply, in the order of the contract.
type Ownership uint32

// The cases of Ownership.
const (
	Standard Ownership = iota
	Child
	Adopt
	Force
)

// Host is what a controller can reach.
type Host interface {
	Get(kind Kind, namespace, name string) (string, error)
	GetLive(kind Kind, namespace, name string) (string, error)
	Find(kind Kind, find Find) (items []string, next string, err error)
	Apply(object string, ownership Ownership) (string, error)
	ApplyStatus(object string) (string, error)
	Create(object string, child bool) (string, error)
	// Patch takes a JSON patch, or a merge patch.
	Patch(kind Kind, namespace, name string, merge bool, body string) (string, error)
	// Remove deletes; propagation is 0 in the background, 1 in the foreground, 2 for orphans.
	Remove(kind Kind, namespace, name, uid, version string, propagation uint32) error
	EmitEvent(event Event) error
	Now() float64
	Random(length uint32) []byte
	Config() string
	// Log writes a line; level is 0 for error, 1 for warn, 2 for info, 3 for debug.
	Log(level uint32, message string, fields []Field)
}

// Outcome is how a run ended.
type Outcome struct {
	// Way is await-change, requeue-after, terminal, invalid or retry.
	Way string
	// Millis is of requeue-after.
	Millis uint32
	// Words are of the last three.
	Words string
}

// Guest is a controller.
type Guest interface {
	Describe(host Host) (string, error)
	Run(host Host, namespace, name string) Outcome
}
