package nagaya

import (
	"errors"
	"fmt"

	"nagaya.dev/sdk/internal/api"
)

// APIError is a call of the cluster that did not do what was asked. Its Reason is not-found, already-exists, conflict, forbidden,
// invalid, not-declared, budget-exceeded or unavailable.
type APIError = api.Error

// Is says whether err is an APIError of this reason.
func Is(err error, reason string) bool {
	var call *APIError
	return errors.As(err, &call) && call.Reason == reason
}

type decision struct {
	way string
	err error
}

func (d *decision) Error() string { return d.err.Error() }
func (d *decision) Unwrap() error { return d.err }

// Terminal is an error after which the object is not run again until something changes.
func Terminal(format string, arguments ...any) error {
	return &decision{"terminal", fmt.Errorf(format, arguments...)}
}

// Invalid is as Terminal, and the object itself is at fault: the message becomes its condition `Accepted: False`.
func Invalid(format string, arguments ...any) error {
	return &decision{"invalid", fmt.Errorf(format, arguments...)}
}

// ended is what a run with this error ended in. Whatever is no decision is a retry; the same call would be refused again after
// an invalid or undeclared one.
func ended(err error) api.Outcome {
	var of *decision
	switch {
	case errors.As(err, &of):
		return api.Outcome{Way: of.way, Words: err.Error()}
	case Is(err, "invalid"), Is(err, "not-declared"):
		return api.Outcome{Way: "terminal", Words: err.Error()}
	default:
		return api.Outcome{Way: "retry", Words: err.Error()}
	}
}
