//go:build !race

package engine_test

// sequences is how many random sequences are run.
const sequences = 10000
