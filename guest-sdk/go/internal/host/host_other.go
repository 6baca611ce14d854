//go:build !wasip1

// Package host is the host as a component imports it; outside of one there is none, and a test runs a controller on fake.Cluster.
package host

import "nagaya.dev/sdk/internal/api"

// Export does nothing here.
func Export(api.Guest) {}
