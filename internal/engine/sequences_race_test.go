//go:build race

package engine_test

// sequences is how many random sequences are run under the race detector; the rest runs without.
const sequences = 300
