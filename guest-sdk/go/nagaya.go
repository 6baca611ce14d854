// Package nagaya is for Kubernetes controllers that run as WebAssembly components in the Nagaya host.
//
//	func init() {
//		nagaya.Export(nagaya.Controller[Greeting]{
//			Needs: nagaya.Needs{
//				Primary: nagaya.Watch{Kind: "example.com/v1/Greeting"},
//				Owns:    []nagaya.Watch{{Kind: "v1/ConfigMap"}},
//			},
//			Reconcile: func(g *Greeting, cx nagaya.Context) (nagaya.Result, error) { … },
//		})
//	}
//
//	func main() {}
//
// Unit tests run it on a Cluster of the package fake. Nothing that a controller keeps in memory outlives a call.
package nagaya

import (
	"fmt"
	"math"
	"runtime/debug"
	"time"

	"nagaya.dev/sdk/internal/api"
	"nagaya.dev/sdk/internal/host"
)

// Result is the answer of a run that went well.
type Result struct {
	// RequeueAfter is when the object runs again if nothing changes before; 0: not.
	RequeueAfter time.Duration
	// Requeue asks for another run at once.
	Requeue bool
}

// Controller is a controller of objects of T.
type Controller[T any] struct {
	Needs
	// Configure refuses a config by an error, before the revision runs.
	Configure func(Context) error
	// Reconcile brings the world in line with the object, which exists and is not being deleted. It must end in the same state
	// however often it is called.
	Reconcile func(*T, Context) (Result, error)
	// Deleting cleans up for an object that is being deleted, then takes the finalizer away.
	Deleting func(*T, Context) (Result, error)
	// Gone is called when the object is gone.
	Gone func(namespace, name string, cx Context) (Result, error)
}

// Guest is a controller, whatever its type.
type Guest = api.Guest

// Export makes a controller the guest of the component; call it in an init function. Natively it does nothing.
func Export(guest Guest) { host.Export(guest) }

// Describe implements Guest.
func (c Controller[T]) Describe(host api.Host) (string, error) {
	if c.Configure != nil {
		if err := c.Configure(Context{host}); err != nil {
			return "", err
		}
	}
	return c.Manifest()
}

// run reads the primary and calls what its state asks for.
func (c Controller[T]) run(cx Context, namespace, name string) (Result, error) {
	var object T
	var of head
	kind, err := api.ParseKind(c.Primary.Kind)
	if err != nil {
		return Result{}, err
	}
	answer, err := cx.host.Get(kind, namespace, name)
	if Is(err, "not-found") {
		if c.Gone == nil {
			return Result{}, nil
		}
		return c.Gone(namespace, name, cx)
	}
	if err != nil {
		return Result{}, err
	}
	if err := decode(answer, &of); err != nil {
		return Result{}, Invalid("%w", err)
	}
	if err := decode(answer, &object); err != nil {
		return Result{}, Invalid("%w", err)
	}
	if of.Metadata.DeletionTimestamp != "" {
		if c.Deleting == nil {
			return Result{}, nil
		}
		return c.Deleting(&object, cx)
	}
	return c.Reconcile(&object, cx)
}

// Run implements Guest.
func (c Controller[T]) Run(host api.Host, namespace, name string) (outcome api.Outcome) {
	cx := Context{host}
	defer func() {
		if why := recover(); why != nil {
			host.Log(0, fmt.Sprintf("panic: %v\n%s", why, debug.Stack()), nil)
			outcome = api.Outcome{Way: "retry", Words: fmt.Sprintf("panic: %v", why)}
		}
	}()
	result, err := c.run(cx, namespace, name)
	switch {
	case err != nil:
		return ended(err)
	case result.RequeueAfter > 0 || result.Requeue:
		millis := (result.RequeueAfter + time.Millisecond - 1) / time.Millisecond
		return api.Outcome{Way: "requeue-after", Millis: uint32(min(millis, math.MaxUint32))}
	default:
		return api.Outcome{Way: "await-change"}
	}
}
